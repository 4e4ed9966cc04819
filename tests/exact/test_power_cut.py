"""What is on disk when a checkpoint says that a round is complete, and what a run does with less."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from resumed import Killed, lines
from tiny import experiment_config
from trillium.config.experiment import ExperimentConfig
from trillium.errors import UserError
from trillium.experiment.folder import RunFolder
from trillium.experiment.run import build
from trillium.federation.side import Metrics
from trillium.report.read import read_run
from trillium.report.summary import remarks, summarise

pytestmark = pytest.mark.usefixtures("uncounted")


def config_of(hub: Path) -> ExperimentConfig:
    return experiment_config(hub, "rounds=2", "training.local_steps=1", "model.dtype=float32")


def stopped(hub: Path, folder: Path) -> ExperimentConfig:
    config = config_of(hub)

    def dying(line: Metrics) -> None:
        if line["round"] == 2:
            raise Killed

    with pytest.raises(Killed):
        build(config, RunFolder(folder, "run")).run(dying)
    return config


def test_all_that_a_checkpoint_speaks_of_is_on_disk_before_it(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The calls of the system in their order: nothing is renamed before what it stands for is kept."""
    folder = tmp_path / "run"
    synced: dict[str, int] = {}  # sizes, when they were last written through
    fsync, replace = os.fsync, Path.replace
    renamed = []

    def noting_fsync(handle: int) -> None:
        fsync(handle)
        path = Path(f"/proc/self/fd/{handle}").readlink()
        # A name is on disk when its folder has been written through, not before.
        synced[str(path)] = len([*path.iterdir()]) if path.is_dir() else os.fstat(handle).st_size

    def noting_replace(source: Path, target: Path) -> Path:
        assert synced[str(source)] == source.stat().st_size
        if target.name.startswith("server@"):
            for name in ("wire.jsonl", "metrics.jsonl"):
                path = folder / name
                assert synced[str(path)] == path.stat().st_size
            assert synced[str(folder)] == len([*folder.iterdir()])
            renamed.append(target.name)
        return replace(source, target)

    monkeypatch.setattr("os.fsync", noting_fsync)
    monkeypatch.setattr(Path, "replace", noting_replace)
    build(config_of(hub), RunFolder(folder, "run")).run()
    assert renamed == ["server@0.pt", "server@1.pt", "server@2.pt"]


@pytest.mark.parametrize("name", ["wire.jsonl", "metrics.jsonl"])
def test_a_log_that_has_lost_its_end_is_told_and_the_run_goes_on(
    hub: Path, tmp_path: Path, name: str
) -> None:
    build(config_of(hub), RunFolder(tmp_path / "whole", "run")).run()
    folder = tmp_path / "run"
    config = stopped(hub, folder)
    before = lines(folder, name)
    text = (folder / name).read_bytes()
    # The checkpoint of round 1 knows of these lines; half of the last and all behind it are gone.
    kept = len(b"".join(text.splitlines(keepends=True)[:1]))
    os.truncate(folder / name, kept + 7)
    build(config, RunFolder.reopen(folder)).run()
    status = json.loads((folder / "status.json").read_text())
    assert status["state"] == "finished"
    assert status["lost_bytes"][name] > 0
    after = lines(folder, name)
    assert after[0] == before[0]
    assert after[-1]["round"] == 2
    [row] = summarise([read_run(folder)])
    assert any(f"{name} has lost" in remark for remark in remarks([row]))
    # The state is none the worse for it.
    weights = [
        path / "adapter" / "adapter_model.safetensors" for path in (folder, tmp_path / "whole")
    ]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_ledger_that_cannot_be_read_is_told_in_three_parts(hub: Path, tmp_path: Path) -> None:
    config = stopped(hub, tmp_path / "run")
    path = tmp_path / "run" / "wire.jsonl"
    text = path.read_text()
    path.write_text("#" + text[1:])
    with pytest.raises(UserError, match=r"wire\.jsonl: the ledger cannot be read behind line 0"):
        build(config, RunFolder.reopen(tmp_path / "run"))
