"""Run experiments in sight of the user, and print what they have brought."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

if TYPE_CHECKING:
    from trillium.config.experiment import ExperimentConfig
    from trillium.experiment.arm import Key
    from trillium.experiment.folder import RunFolder


def show(folder: Path, as_json: bool, reach: Sequence[float] = ()) -> None:
    """Write the report of a folder and print its table.

    Args:
        reach: accuracies, as shares, to tell the bytes to.
    """
    from trillium.report.table import terminal_table, to_dict
    from trillium.report.write import make_report

    made = make_report(folder, reach)
    if as_json:
        found = to_dict(made.rows, made.goals)
        print(json.dumps({"folder": str(folder), "report": str(made.page), **found}, indent=1))
        return
    console = Console()
    console.print(terminal_table(made.rows, console.width, made.goals))
    console.print(f"\nReport: {made.page}", highlight=False, soft_wrap=True)


def run_all(
    experiments: dict[Key, ExperimentConfig],
    name: str,
    out: Path,
    as_json: bool,
    workers: int = 1,
) -> None:
    """Run experiments into a new folder, and show their report.

    Raises:
        Exit: one has failed.
    """
    from trillium.experiment.compare import prepare
    from trillium.experiment.folder import new_folder

    folder = new_folder(out, name)
    prepare(experiments, folder)
    if show_runs(experiments, folder, as_json, workers):
        raise typer.Exit(1)


def show_runs(
    experiments: dict[Key, ExperimentConfig], folder: Path, as_json: bool, workers: int
) -> bool:
    """Run those arms of a comparison that have not finished, showing how far they are; then all.

    Returns:
        Whether one has failed, which was said.
    """
    from trillium.cli.screen import Screen
    from trillium.experiment.compare import run_arms
    from trillium.quiet import quiet

    quiet()
    console = Console(stderr=as_json, quiet=as_json)
    rounds = {key: config.rounds * config.framework.trains for key, config in experiments.items()}
    with interruptible(folder), Screen(console, rounds) as screen:
        failures = run_arms(experiments, folder, begin=screen.begin, argv=sys.argv, workers=workers)
    show(folder, as_json)
    for (arm, seed), why in failures.items():
        print(f"{arm}, seed {seed}, failed: {why}", file=sys.stderr)
    return bool(failures)


@contextmanager
def interruptible(folder: Path) -> Iterator[None]:
    """Say how to go on if the user stops what is run into a folder."""
    try:
        yield
    except KeyboardInterrupt:
        print(
            "\nInterrupted; what was measured so far is there. "
            f"Go on with: trillium resume {folder}",
            file=sys.stderr,
        )
        raise


def run_single(config: ExperimentConfig, folder: RunFolder, as_json: bool) -> None:
    """Run one experiment, showing how far it is, and then its report.

    Raises:
        Exit: it has failed, and was said to have.
    """
    from trillium.cli.screen import Screen
    from trillium.experiment.arm import is_out_of_memory, reason_of, run_one
    from trillium.federation.fleet import RoundFailed
    from trillium.quiet import quiet

    quiet()
    console = Console(stderr=as_json, quiet=as_json)
    key = (folder.arm, config.seed)
    try:
        with (
            interruptible(folder.path),
            Screen(console, {key: config.rounds * config.framework.trains}) as screen,
        ):
            seen = screen.begin(*key)
            run_one(config, folder, seen.observe, seen.watch, sys.argv)
    except Exception as error:
        if not isinstance(error, RoundFailed) and not is_out_of_memory(error):
            raise
        print(f"{folder.path} failed: {reason_of(error)}", file=sys.stderr)
        raise typer.Exit(1) from error
    show(folder.path, as_json)
