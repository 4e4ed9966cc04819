"""The Ray engine equals the local one, bit for bit, and outlives its workers."""

from __future__ import annotations

import json
import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="Ray is not installed (extra: simulation)")

from deployed import lines_of, metrics
from tiny import experiment_config
from trillium.config.experiment import ExperimentConfig
from trillium.engines.simulation import simulation
from trillium.experiment.folder import RunFolder
from trillium.experiment.host import MakeEngine
from trillium.experiment.run import build
from trillium.federation.side import Metrics
from variants import VARIANTS, Variant, cases

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two_workers() -> Iterator[MakeEngine]:
    with simulation("ray").opened(2, []) as (at_a_time, host), host() as engine:
        assert at_a_time == 1
        yield engine


def crossed(folder: Path) -> list[dict[str, object]]:
    """Return the ledger, in its order.

    Clients that share a process share what is measured of batches of one shape, whatever part of their
    texts is to be learnt, so peaks are a little off.
    """
    found = lines_of(folder / "wire.jsonl")
    for entry in found:
        del entry["seconds"]
        if entry.get("peak_bytes"):
            entry["peak_bytes"] = pytest.approx(entry["peak_bytes"], rel=0.01)
    return found


def assert_equal(mine: Path, local: Path) -> None:
    files = [sorted(str(p.relative_to(at)) for p in at.rglob("*")) for at in (mine, local)]
    assert files[0] == files[1]
    assert crossed(mine) == crossed(local)
    assert metrics(mine) == metrics(local)
    for name in files[0]:
        if name.endswith((".safetensors", "config.yaml", "data.json", "once.json", "answers.json")):
            assert (mine / name).read_bytes() == (local / name).read_bytes(), name
    assert json.loads((mine / "status.json").read_text())["state"] == "finished"


def run_both(config: ExperimentConfig, folder: Path, engine: MakeEngine) -> tuple[Path, Path]:
    build(config, RunFolder(folder / "local", "local")).run()
    build(config, RunFolder(folder / "ray", "local"), engine=engine).run()
    return folder / "ray", folder / "local"


@pytest.mark.parametrize("variant", cases((), lambda variant: variant.repeats))
def test_ray_equals_the_local_engine(
    hub: Path, tmp_path: Path, two_workers: MakeEngine, variant: Variant
) -> None:
    words = (*variant.words, *variant.dropout)
    config = experiment_config(hub, *words, model=variant.model, task=variant.task)
    assert_equal(*run_both(config, tmp_path, two_workers))
