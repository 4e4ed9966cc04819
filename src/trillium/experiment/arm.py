"""One arm of a comparison with one seed: built, planned and run into a folder of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from trillium.config.experiment import ExperimentConfig, experiment, read_yaml
from trillium.config.places import located
from trillium.errors import UserError
from trillium.experiment.folder import RunFolder
from trillium.experiment.run import Observer, build
from trillium.federation.side import Metrics
from trillium.wire.ledger import Entry

Key = tuple[str, int]
"""The label of an arm, and a seed."""


class Progress(Protocol):
    """Sees how a run goes on."""

    def observe(self, line: Metrics) -> None:
        """Take an evaluation."""

    def watch(self, entry: Entry) -> None:
        """Take a message."""

    def end(self) -> None:
        """Take note that the run has ended, well or not."""


Begin = Callable[[str, int], Progress]


def place(folder: Path, key: Key) -> Path:
    """Return the run folder of an arm and seed."""
    return folder / f"{key[0]}_s{key[1]}"


def run_arm(
    key: Key,
    config: ExperimentConfig,
    folder: Path,
    progress: Progress | None,
    argv: Sequence[str],
) -> None:
    """Run one arm of a comparison, or go on with it.

    Raises:
        RoundFailed: too few clients stayed in a round.
        UserError: it cannot be run, or what is there was begun with other settings.
    """
    path = place(folder, key)
    if not path.exists():
        run_folder = RunFolder(path, key[0])
    else:
        written = path / "config.yaml"
        if written.is_file() and experiment(read_yaml(written)) != located(config):
            raise UserError(
                str(path), "it holds a run of other settings", "Remove it, and it is made anew"
            )
        run_folder = RunFolder.reopen(path)
    if progress is None:
        run_one(config, run_folder, argv=argv)
    else:
        run_one(config, run_folder, progress.observe, progress.watch, argv)


def run_one(
    config: ExperimentConfig,
    folder: RunFolder,
    observe: Observer | None = None,
    watch: Callable[[Entry], None] | None = None,
    argv: Sequence[str] = (),
) -> None:
    """Build, plan and run one experiment into its folder.

    Whatever fails is written there, then raised.
    """
    try:
        experiment = build(config, folder, watch, argv)
        if not (folder.path / "plan.json").exists():
            # Imported here: tensors without values take a second to load.
            from trillium.plan.result import plan_of_run

            folder.json("plan.json", plan_of_run(config, experiment.server, experiment.clients))
    except BaseException as error:
        folder.status("failed", f"{type(error).__name__}: {error}")
        raise
    experiment.run(observe)
