"""Runs a tiny federation and plans it, to hold the plan to the ledger."""

from __future__ import annotations

from pathlib import Path

import tiny
from trillium.plan.held import Held, hold


def plan_and_run(hub: Path, *words: str, model: str = "gpt2", task: str = "classification") -> Held:
    """Plan a federation, then run it."""
    return hold(tiny.federation(hub, *words, model=model, task=task))


def close(predicted: float, measured: float, share: float) -> bool:
    """Whether a prediction is within a share of what was measured."""
    return abs(predicted - measured) <= share * measured
