"""One arm of a comparison with one seed: built, planned and run into a folder of its own."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Protocol

import torch

from trillium.config.experiment import ExperimentConfig
from trillium.config.places import located
from trillium.errors import UserError
from trillium.experiment.folder import RunFolder, is_of
from trillium.experiment.host import MakeEngine, local_engine
from trillium.experiment.run import Observer, build
from trillium.federation.failed import RoundFailed
from trillium.federation.side import Metrics
from trillium.files import write_atomic
from trillium.wire.ledger import Entry

TRACEBACK: Final = "traceback.txt"  # of an error that is nobody's choice
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
    engine: MakeEngine = local_engine,
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
        if written.is_file() and not is_of(path, located(config).tree()):
            raise UserError(
                str(path), "it holds a run with other settings", "Remove it, and it is run again"
            )
        run_folder = RunFolder.reopen(path)
    if progress is None:
        run_one(config, run_folder, argv=argv, engine=engine)
    else:
        run_one(config, run_folder, progress.observe, progress.watch, argv, engine)


def run_one(
    config: ExperimentConfig,
    folder: RunFolder,
    observe: Observer | None = None,
    watch: Callable[[Entry], None] | None = None,
    argv: Sequence[str] = (),
    engine: MakeEngine = local_engine,
) -> None:
    """Build, plan and run one experiment into its folder.

    Whatever fails is written there, then raised.

    Raises:
        RoundFailed: too few clients stayed in a round.
        UserError: it cannot be run.
    """
    try:
        _run(config, folder, observe, watch, argv, engine)
    except (RoundFailed, UserError):
        raise
    except Exception:
        write_atomic(folder.path / TRACEBACK, traceback.format_exc())
        raise


def _run(
    config: ExperimentConfig,
    folder: RunFolder,
    observe: Observer | None,
    watch: Callable[[Entry], None] | None,
    argv: Sequence[str],
    engine: MakeEngine,
) -> None:
    try:
        experiment = build(config, folder, watch, argv, engine)
        if not (folder.path / "plan.json").exists():
            # Imported here: tensors without values take a second to load.
            from trillium.plan.result import plan_of_run

            plan = plan_of_run(experiment.config, experiment.server, experiment.clients)
            folder.json("plan.json", plan)
    except BaseException as error:
        folder.ended(error)
        raise
    experiment.run(observe)


def reason_of(error: BaseException) -> str:
    """Return in one line why a run has failed."""
    if isinstance(error, RoundFailed | UserError):
        return str(error)
    first = (str(error).strip() or "it says nothing more").splitlines()[0]
    if is_out_of_memory(error):
        return (
            f"out of memory ({first}). Write training.gradient_checkpointing=true, a smaller "
            "evaluation.batch_tokens, or model.dtype=bfloat16, or take fewer --workers"
        )
    return f"{type(error).__name__}: {first} (all of it: {TRACEBACK} in the run folder)"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether there was no memory left, on whichever device."""
    no_cpu = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    return no_cpu or isinstance(error, MemoryError | torch.OutOfMemoryError)
