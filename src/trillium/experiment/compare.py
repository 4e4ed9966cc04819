"""The same experiment under several frameworks and seeds, in one folder with one report."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from trillium.config.experiment import ExperimentConfig, experiment, read_yaml
from trillium.config.places import located
from trillium.errors import UserError
from trillium.experiment.arm import Begin, Key, place, reason_of, run_arm
from trillium.experiment.folder import claim, is_finished, to_yaml
from trillium.experiment.host import Host, in_process
from trillium.experiment.workers import side_by_side
from trillium.files import write_atomic
from trillium.report.read import ABOUT_FILE, COMPARE_FILE


def compare(
    experiments: Mapping[Key, ExperimentConfig],
    folder: Path,
    *,
    begin: Begin | None = None,
    argv: Sequence[str] = (),
    workers: int = 1,
    told: Mapping[str, Any] | None = None,
) -> dict[Key, str]:
    """Run each arm with each seed and return the failures.

    An arm that fails, whatever the reason, is written down as failed, and the others go on.

    Args:
        folder: made, or empty; gets `compare.yaml` and a run folder for each arm and seed.
        begin: called before each run; sees how it goes on.
        workers: runs at the same time, each in a process of its own.
        told: what the report says beside the figures.
    """
    prepare(experiments, folder, told)
    return run_arms(experiments, folder, begin=begin, argv=argv, workers=workers)


def prepare(
    experiments: Mapping[Key, ExperimentConfig], folder: Path, told: Mapping[str, Any] | None = None
) -> None:
    """Write what a comparison will consist of into a new folder."""
    claim(folder)
    arms = {f"{arm}_s{seed}": located(config).tree() for (arm, seed), config in experiments.items()}
    write_atomic(folder / COMPARE_FILE, to_yaml(arms))
    if told:
        write_atomic(folder / ABOUT_FILE, to_yaml(told))


def run_arms(
    experiments: Mapping[Key, ExperimentConfig],
    folder: Path,
    *,
    begin: Begin | None = None,
    argv: Sequence[str] = (),
    workers: int = 1,
    host: Host = in_process,
) -> dict[Key, str]:
    """Run those arms of a comparison that have not finished, and return the failures.

    The arguments are those of `compare`; the folder is there.

    Args:
        host: holds the clients.
    """
    todo = {
        key: config
        for key, config in experiments.items()
        if not ((path := place(folder, key)).exists() and is_finished(path))
    }
    if workers > 1 and len(todo) > 1:
        return side_by_side(todo, folder, min(workers, len(todo)), begin, argv, host)
    failures: dict[Key, str] = {}
    with host() as engine:
        for key, config in todo.items():
            progress = begin(*key) if begin is not None else None
            try:
                run_arm(key, config, folder, progress, argv, engine)
            except Exception as error:  # whatever it is, the other arms are not to blame
                failures[key] = reason_of(error)
            finally:
                if progress is not None:
                    progress.end()
            if key in failures:
                let_go()
    return failures


def let_go() -> None:
    """Give back what a run held that has failed, memory of a GPU above all."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def stopped(folder: Path) -> dict[Key, ExperimentConfig]:
    """Return the experiments of a stopped run, or of a comparison: those that have not finished.

    Raises:
        UserError: the folder is neither, or all of it has finished.
    """
    if (folder / COMPARE_FILE).is_file():
        found = {}
        for label, tree in read_yaml(folder / COMPARE_FILE).items():
            arm, _, seed = label.rpartition("_s")
            if not ((folder / label).exists() and is_finished(folder / label)):
                found[arm, int(seed)] = experiment(tree)
        if not found:
            raise UserError(
                str(folder), "this comparison has finished", f"Write: trillium report {folder}"
            )
        return found
    if not (folder / "status.json").is_file():
        raise UserError(
            str(folder), "it is neither a run nor a comparison", "Run `trillium ls` to see them"
        )
    if is_finished(folder):
        raise UserError(str(folder), "this run has finished", f"Write: trillium report {folder}")
    if not (folder / "config.yaml").is_file():
        raise UserError(
            str(folder),
            "this run was stopped before it began",
            "Start it anew; nothing is lost",
        )
    config = experiment(read_yaml(folder / "config.yaml"))
    return {(config.framework.name, config.seed): config}
