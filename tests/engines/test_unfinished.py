"""A deployment goes on with the run that was not finished, unless told otherwise; one run at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="Flower is not installed (extra: deploy)")

from tiny import experiment_config
from trillium.config.experiment import ExperimentConfig
from trillium.deploy.folder import SETTINGS
from trillium.engines.settings import Settings
from trillium.engines.unfinished import alone, take_folder
from trillium.errors import UserError
from trillium.experiment.folder import RunFolder


def settings(runs: Path, *, resume: bool = True) -> Settings:
    values = {name: value for name, (value, _) in SETTINGS.items()}
    return Settings.read({**values, "run-folder": str(runs), "resume": resume})


def stop(folder: RunFolder, config: ExperimentConfig, state: str = "failed") -> Path:
    folder.config(config.tree())
    folder.checkpoints.keep("server", 1, {"state": {}})
    folder.status(state)
    return folder.path


def test_the_unfinished_run_goes_on_unless_told_otherwise(hub: Path, tmp_path: Path) -> None:
    config = experiment_config(hub)
    first = stop(take_folder(config, settings(tmp_path)), config)
    second = take_folder(config, settings(tmp_path))
    assert second.path == first
    second.status("stopped")
    other = take_folder(config, settings(tmp_path, resume=False))
    assert other.path != first
    stop(other, config, "finished")
    assert take_folder(config, settings(tmp_path)).path == first


def test_another_recipe_begins_anew(hub: Path, tmp_path: Path) -> None:
    config = experiment_config(hub)
    first = stop(take_folder(config, settings(tmp_path)), config)
    found = take_folder(experiment_config(hub, "rounds=7"), settings(tmp_path))
    assert found.path != first


def test_a_run_without_a_checkpoint_begins_anew(hub: Path, tmp_path: Path) -> None:
    config = experiment_config(hub)
    first = take_folder(config, settings(tmp_path))
    first.status("failed")
    assert take_folder(config, settings(tmp_path)).path != first.path


def test_a_second_run_is_refused_before_it_has_a_folder(tmp_path: Path) -> None:
    with alone(tmp_path):
        with pytest.raises(UserError, match="a process still runs it"), alone(tmp_path):
            pass
        assert [path for path in tmp_path.iterdir() if path.is_dir()] == []
    with alone(tmp_path):
        pass
