"""How a benchmark of speed writes what it has found: with threads, versions and device."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from trillium.experiment.environment import environment
from trillium.files import write_atomic


def write_found(path: Path, load_before: float, found: Any, **told: Any) -> None:
    """Write figures as JSON.

    Args:
        load_before: processes that ran before the benchmark did.
        told: what else is to stand there, such as the goal.
    """
    content = {
        **told,
        "num_threads": torch.get_num_threads(),
        "load_before": load_before,
        "found": found,
        "environment": environment("cpu", sys.argv),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(content, indent=1) + "\n")
