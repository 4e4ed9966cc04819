"""Runs that have finished before are taken into a comparison, and no others."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest

import tiny
from trillium.config.experiment import ExperimentConfig
from trillium.errors import UserError
from trillium.experiment.arm import run_arm
from trillium.experiment.compare import compare, prepare, stopped
from trillium.experiment.reuse import take_finished


def config(hub: Path, *words: str, seed: int = 0) -> ExperimentConfig:
    return tiny.experiment_config(
        hub, "framework=fedllm", "rounds=1", "data.num_clients=2", f"seed={seed}", *words
    )


def taken(out: Path, name: str, made: ExperimentConfig) -> dict[tuple[str, int], Path]:
    folder = out / name
    experiments = {(name, made.seed): made}
    prepare(experiments, folder)
    return take_finished(experiments, folder, out)


def test_only_a_finished_run_of_the_same_settings_and_data_is_taken(
    hub: Path, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text((hub / "classification.jsonl").read_text())
    source = f"data.source={{name: files, train: {rows}}}"
    first = tmp_path / "runs" / "first"
    made = {("old", seed): config(hub, source, seed=seed) for seed in (0, 1)}
    assert compare(made, first) == {}
    half = first / "old_s1" / "status.json"
    half.write_text(half.read_text().replace("finished", "running"))
    (first / "old_s0" / "table.csv").touch()

    out = tmp_path / "runs"
    assert taken(out, "half", config(hub, source, seed=1)) == {}
    assert not (out / "half" / "half_s1").exists(), "nothing goes on where it is not whole"
    assert taken(out, "other", config(hub, source, "training.batch_size=3")) == {}
    assert taken(out, "same", config(hub, source)) == {("same", 0): first / "old_s0"}
    again, before = out / "same" / "same_s0", first / "old_s0"
    status = json.loads((again / "status.json").read_text())
    assert (status["arm"], status["reused"]) == ("same", str(before))
    assert json.loads((before / "status.json").read_text())["arm"] == "old"
    assert (again / "wire.jsonl").read_bytes() == (before / "wire.jsonl").read_bytes()
    assert not (again / "table.csv").exists()
    with pytest.raises(UserError, match="has finished"):
        stopped(out / "same")

    old = first / "old_s0" / "status.json"
    old.write_text(old.read_text().replace('"deployed": false', '"deployed": true'))
    assert taken(out, "nodes", config(hub, source)) == {("nodes", 0): out / "same" / "same_s0"}
    shutil.rmtree(out / "nodes")
    old.write_text(old.read_text().replace('"deployed": true', '"deployed": false'))

    # One word more of data, or another version of a library, makes it another run.
    now = time.time() + 1
    os.utime(rows, (now, now))
    assert taken(out, "changed", config(hub, source)) == {}
    os.utime(rows, (0, 0))
    for path in (again, before):
        env = json.loads((path / "env.json").read_text())
        env["versions"]["torch"] = "0"
        (path / "env.json").unlink()
        (path / "env.json").write_text(json.dumps(env))
    assert taken(out, "versions", config(hub, source)) == {}


def test_a_run_goes_on_with_its_own_settings_alone(hub: Path, tmp_path: Path) -> None:
    run_arm(("a", 0), config(hub), tmp_path, None, ())
    with pytest.raises(UserError, match="other settings"):
        run_arm(("a", 0), config(hub, "training.batch_size=3"), tmp_path, None, ())
