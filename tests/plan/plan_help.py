"""Runs a tiny federation and plans it, to hold the plan to the ledger."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tiny
from trillium.experiment import Experiment
from trillium.ledger import Purpose
from trillium.plan.predict import Prediction, predict
from trillium.plan.result import texts_of
from trillium.wire import Direction


@dataclass(frozen=True)
class Held:
    """A run, and the plan that was made of it before."""

    plan: Prediction
    run: Experiment

    def bytes(self, direction: Direction, purpose: Purpose = "train") -> int:
        return self.run.fleet.ledger.bytes_total(direction, purpose)

    def kinds(self, direction: Direction) -> dict[str, int]:
        found: dict[str, int] = {}
        for entry in self.run.fleet.ledger.entries:
            if entry.direction == direction and entry.purpose == "train":
                for kind, count in entry.kinds.items():
                    found[kind] = found.get(kind, 0) + count
        return found

    def flops(self, client: str) -> float:
        return sum(
            entry.flops or 0
            for entry in self.run.fleet.ledger.entries
            if entry.client == client and entry.purpose != "evaluate"
        )

    def peak(self, client: str) -> int:
        return max(
            entry.peak_bytes or 0
            for entry in self.run.fleet.ledger.entries
            if entry.client == client and entry.purpose != "evaluate"
        )


def plan_and_run(hub: Path, *words: str, model: str = "gpt2", task: str = "classification") -> Held:
    """Plan a federation, then run it."""
    run = tiny.federation(hub, *words, model=model, task=task)
    plan = predict(run.config, texts_of(run.config, run.server, run.clients))
    run.run()
    return Held(plan, run)


def close(predicted: float, measured: float, share: float) -> bool:
    """Whether a prediction is within a share of what was measured."""
    return abs(predicted - measured) <= share * measured
