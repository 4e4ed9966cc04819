"""What a finished run has trained: measure it again, or write it elsewhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from trillium.config.experiment import ExperimentConfig, Tree, experiment, merge, read_yaml
from trillium.errors import UserError
from trillium.experiment.folder import is_finished
from trillium.experiment.run import Experiment, build
from trillium.federation.side import Metrics
from trillium.models.slots import State

ADAPTER = "adapter"


def evaluate_run(folder: Path, changes: Tree) -> Metrics:
    """Return the metrics of a run's model on held-out data.

    Raises:
        UserError: the folder holds no trained model, or the data does not fit it.
    """
    built = build(experiment(merge(run_config(folder).tree(), changes)))
    learnt = json.loads((folder / "data.json").read_text(encoding="utf-8"))["labels"]
    if list(built.data.labels) != learnt:
        raise UserError(
            "the data of this evaluation",
            f"its classes {list(built.data.labels)[:3]} … are not those that the model has learnt",
            "Give data with the same classes, or train on these",
        )
    state = trained_state(built, folder)
    return built.server.evaluate(state, built.config.evaluation.batch_size)


def export_run(folder: Path, to: Path, *, merge: bool) -> None:
    """Write a run's model into a new folder.

    Args:
        to: must not exist.

    Raises:
        UserError: the folder holds no trained model, or the target exists.
    """
    if to.exists():
        raise UserError(f"--to {to}", "it exists already", "Choose a folder that does not exist")
    _adapter(folder)
    if not merge:
        shutil.copytree(folder / ADAPTER, to)
        return
    built = build(run_config(folder))
    built.model.save_merged(trained_state(built, folder), to)


def run_config(folder: Path) -> ExperimentConfig:
    """Return the configuration of a finished run.

    Raises:
        UserError: the folder holds no trained model.
    """
    _adapter(folder)
    return experiment(read_yaml(folder / "config.yaml"))


def trained_state(built: Experiment, folder: Path) -> State:
    """Return what a run has trained."""
    return built.model.load_state(folder / ADAPTER)


def _adapter(folder: Path) -> Path:
    """Return the folder of the trained parameters."""
    path = folder / ADAPTER
    if path.is_dir():
        return path
    arms = sorted(str(found.parent) for found in folder.glob(f"*/{ADAPTER}"))
    why, instead = "it holds no trained model", "Give the folder of a finished run"
    if arms:
        instead = f"Give one of: {', '.join(arms[:6])}"
    elif not (folder / "status.json").is_file():
        why += ", for it is no folder of a run"
    elif not is_finished(folder):
        why += ", for the run has not finished"
        instead = f"Write: trillium resume {folder}"
    else:
        why += " that is shared by all"
    raise UserError(str(folder), why, instead)
