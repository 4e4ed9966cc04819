"""Run experiments in sight of the user, and print what they have brought."""

from __future__ import annotations

import json
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

import typer
from rich.console import Console

from trillium.cli.verbs import is_quiet
from trillium.errors import UserError

if TYPE_CHECKING:
    from trillium.config.experiment import ExperimentConfig
    from trillium.engines.simulation import Simulation
    from trillium.experiment.arm import Key
    from trillium.experiment.folder import RunFolder


def show(folder: Path, as_json: bool, reach: Sequence[float] = ()) -> None:
    """Write the report of a folder and print its table.

    Args:
        reach: accuracies, as shares, to tell the bytes to.
    """
    from trillium.experiment.spent import reported
    from trillium.report.table import terminal_table, to_dict
    from trillium.report.words import costs, next_steps, outcome

    made = reported(folder, reach)
    if as_json:
        found = to_dict(made.rows, made.goals)
        print(json.dumps({"folder": str(folder), "report": str(made.page), **found}, indent=1))
        return
    console = Console()
    console.print(terminal_table(made.rows, console.width, made.goals))
    said = [*outcome(made.rows), *costs(made.rows)]
    console.print("\n" + " ".join([*said, made.spent]).strip(), highlight=False)
    for what, command in next_steps(made.rows):
        console.print(f"{what}: {command}", highlight=False, soft_wrap=True)
    console.print(f"\nReport: {made.page}", highlight=False, soft_wrap=True)


def show_runs(
    experiments: dict[Key, ExperimentConfig],
    folder: Path,
    as_json: bool,
    workers: int,
    engine: Simulation,
    *,
    is_new: bool = False,
) -> bool:
    """Run those arms of a comparison that have not finished, showing how far they are; then all.

    Args:
        is_new: whether the folder was made for it, and goes if no arm can be begun.

    Returns:
        Whether one has failed, which was said.

    Raises:
        Exit: no arm could be begun, which was said.
    """
    from trillium.api.start import NoneBegunError, go_all

    console = Console(stderr=as_json, quiet=as_json or is_quiet())
    try:
        with interruptible(folder, is_new=is_new):
            failures = go_all(
                experiments, folder, console, workers, sys.argv, is_new=is_new, engine=engine
            )
    except NoneBegunError as error:
        for why in error.reasons:
            print(f"no run could be begun: {why}", file=sys.stderr)
        raise typer.Exit(2) from error
    show(folder, as_json)
    for (arm, seed), why in failures.items():
        print(f"{arm}, seed {seed}, failed: {why}", file=sys.stderr)
    return bool(failures)


@contextmanager
def interruptible(folder: Path, *, is_new: bool) -> Iterator[None]:
    """Say how to go on if what is run into a folder is stopped: by Ctrl-C, or by another signal.

    Raises:
        SystemExit: it was stopped; the status is that of a program that the signal has ended.
    """
    from trillium.experiment.folder import discard

    names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    signals = [signal.Signals[name] for name in names]
    got: list[int] = [signal.SIGINT]

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        got[:] = [number]
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in signals}
    for number, old in before.items():
        if old != signal.SIG_IGN:  # as under nohup
            signal.signal(number, stop)
    try:
        yield
    except KeyboardInterrupt:
        if is_new and discard(folder):
            how = "Nothing had been measured yet; start it again."
        else:
            command = f"trillium resume {shlex.quote(str(folder))}"
            how = f"What was measured so far is kept. Go on with: {command}"
        print(f"\nStopped. {how}", file=sys.stderr)
        raise SystemExit(128 + got[0]) from None
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def run_single(
    config: ExperimentConfig,
    folder: RunFolder,
    as_json: bool,
    workers: int,
    engine: Simulation,
    *,
    is_new: bool = False,
) -> None:
    """Run one experiment, showing how far it is, and then its report.

    Args:
        is_new: whether the folder was made for it, and goes if the run cannot be begun.

    Raises:
        Exit: it has failed, and was said to have.
    """
    from trillium.api.start import go
    from trillium.experiment.arm import is_out_of_memory, reason_of
    from trillium.federation.failed import RoundFailed

    console = Console(stderr=as_json, quiet=as_json or is_quiet())
    try:
        with interruptible(folder.path, is_new=is_new):
            go(config, folder, console, sys.argv, is_new=is_new, workers=workers, engine=engine)
    except UserError:
        raise
    except Exception as error:
        if not isinstance(error, RoundFailed) and not is_out_of_memory(error):
            raise
        print(f"{folder.path} failed: {reason_of(error)}", file=sys.stderr)
        raise typer.Exit(1) from error
    show(folder.path, as_json)
