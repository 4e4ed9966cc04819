"""Which folder a deployed run goes on with; there is one run at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="Flower is not installed (extra: deploy)")

from trillium.config.experiment import ExperimentConfig, experiment
from trillium.deploy.folder import SETTINGS
from trillium.engines.settings import Settings
from trillium.engines.unfinished import alone, take_folder
from trillium.errors import UserError
from trillium.experiment.folder import RunFolder
from trillium.experiment.run import SERVER


def settings(folder: Path, *, resume: bool) -> Settings:
    values = {name: default for name, (default, _) in SETTINGS.items()}
    return Settings.read({**values, "run-folder": str(folder), "resume": resume})


def stopped(config: ExperimentConfig, path: Path, *, number: int | None) -> RunFolder:
    """Leave a folder as a run leaves it that was stopped, before or after its first checkpoint."""
    folder = RunFolder(path, "fedllm", deployed=True)
    if number is not None:
        folder.config(config.tree())
        folder.checkpoints.keep(SERVER, number, {})
    folder.status("failed", "Killed")
    return folder


def test_the_newest_that_holds_a_checkpoint_of_this_recipe(tmp_path: Path) -> None:
    config, other = experiment({"rounds": 3}), experiment({"rounds": 9})
    resume = settings(tmp_path, resume=True)
    wanted = stopped(config, tmp_path / "20260101-000000_fedllm_builtin_s0", number=2)
    stopped(other, tmp_path / "20260102-000000_fedllm_builtin_s0", number=2)
    stopped(config, tmp_path / "20260103-000000_fedllm_builtin_s0", number=None)
    running = take_folder(config, resume)
    assert running.path == wanted.path
    with pytest.raises(UserError, match="a process still runs it"):
        take_folder(config, resume)
    known = {*tmp_path.iterdir()}
    assert take_folder(config, settings(tmp_path, resume=False)).path not in known
    running.status("finished")
    assert take_folder(config, resume).path not in known


def test_a_second_run_is_refused_before_it_has_a_folder(tmp_path: Path) -> None:
    with alone(tmp_path):
        with pytest.raises(UserError, match="a process still runs it"), alone(tmp_path):
            pass
        assert [path for path in tmp_path.iterdir() if path.is_dir()] == []
    with alone(tmp_path):
        pass
