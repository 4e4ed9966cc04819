"""A few random faults of the drill (`benchmarks/chaos.py`), and that it can fail."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="Flower is not installed (extra: deploy)")

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import chaos
from tiny import experiment_config
from trillium.engines.held import Held
from trillium.engines.session import Handler
from trillium.experiment.folder import RunFolder
from trillium.experiment.run import build


@pytest.mark.slow
def test_random_faults_are_survived_or_said() -> None:
    said: list[str] = []
    table = chaos.run_drills(6, 22, None, said.append)
    assert all(outcome.startswith(chaos.GOOD) for _, outcome in table), said


def test_a_node_that_was_behind_is_not_new_where_all_went_back() -> None:
    """It came to a round's end with the state before; to begin anew is for who has none of them."""
    held = Held({"a": 3})
    assert not held.came("a", 2)
    held.rounds = {"a": 2}  # all sides go back there, and it says so
    assert held.came("a", 2)
    assert held.gathered({"a"}).newcomers == frozenset()
    assert not held.came("a", 1)
    assert held.came("a", 1)  # nobody else has it any more
    assert held.gathered({"a"}).newcomers == {"a"}


@pytest.mark.slow
def test_other_weights_without_a_word_are_found(
    hub: Path, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uncounted: None
) -> None:
    """A node that trains on with what it was not sent, and nobody notices."""

    def drifts(drill: chaos.Drill, data: bytes, handler: Handler) -> bytes:
        node = handler.__self__  # type: ignore[attr-defined]
        node.client.examples.reverse()
        return handler(data)

    monkeypatch.setitem(chaos.FAULTS, "drifts", chaos.Fault(drifts))
    config = experiment_config(hub, "rounds=3", "training.local_steps=2")
    local = tmp_path / "local"
    build(config, RunFolder(local, "local")).run()
    rng = random.Random(1)
    assert chaos.drill(config, keys, tmp_path / "run", ["drifts"], rng, local) == "SILENT"
