"""`trillium.run`, `compare` and `resume`: what the command line does, for Python and notebooks."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, overload

from rich.console import Console

from trillium.api.results import ComparisonResult, RunResult
from trillium.api.start import begin_comparison, begin_run, begin_seeds, go, go_all
from trillium.config.comparison import comparison
from trillium.config.experiment import experiment
from trillium.config.given import Recipe, Settings, asked, default_comparison
from trillium.engines.simulation import LOCAL, Simulation, simulation
from trillium.errors import UserError
from trillium.experiment.compare import stopped
from trillium.experiment.folder import RunFolder, discard
from trillium.experiment.spent import reported
from trillium.report.read import COMPARE_FILE

log = logging.getLogger(__name__)

Engine = str | Mapping[str, Any] | Simulation
"""Where clients work: `"ray"`, or with options `{"name": "ray", "gpus": 0.25}`."""


@overload
def run(
    recipe: Recipe | None = None,
    *settings: Settings,
    seeds: None = None,
    workers: int = 1,
    engine: Engine = LOCAL,
    out: str | Path = "runs",
    progress: bool = True,
    **overrides: Any,
) -> RunResult: ...


@overload
def run(
    recipe: Recipe | None = None,
    *settings: Settings,
    seeds: int | Sequence[int],
    workers: int = 1,
    engine: Engine = LOCAL,
    out: str | Path = "runs",
    progress: bool = True,
    **overrides: Any,
) -> ComparisonResult: ...


def run(
    recipe: Recipe | None = None,
    *settings: Settings,
    seeds: int | Sequence[int] | None = None,
    workers: int = 1,
    engine: Engine = LOCAL,
    out: str | Path = "runs",
    progress: bool = True,
    **overrides: Any,
) -> RunResult | ComparisonResult:
    """Run one experiment, as `trillium run` does.

    Args:
        recipe: the file of a recipe, the name of one that comes with Trillium, a mapping with what
            would stand in one, or a configuration.
        settings: laid over it: words such as "adapter.r=4", or mappings.
        seeds: how many, or which ones; then what comes back is a comparison of them.
        workers: runs at a time, where there are several; with Ray, processes for the clients of a run.
        engine: where the clients work; they do so in this process by default.
        out: where the folder of the run goes.
        progress: whether it is shown how far the run is.
        overrides: settings as keywords, `rounds=3`, `training__batch_size=8` or
            `adapter={"r": 4}`; `model="roberta-base"` and `data="rows.csv"` name these alone.

    Raises:
        UserError: something cannot be run.
        RoundFailed: too few clients stayed in a round.
    """
    tree = asked(recipe, settings, overrides).single()
    console, where = _console(progress), simulation(engine)
    if seeds is None:
        config = experiment(tree)
        folder = begin_run(config, Path(out))
        with _stoppable(folder.path, is_new=True):
            go(config, folder, console, is_new=True, workers=workers, engine=where)
        reported(folder.path)
        return RunResult(folder.path)
    begun = begin_seeds(tree, _numbers(seeds), Path(out))
    with _stoppable(begun.folder, is_new=True):
        go_all(begun.left, begun.folder, console, workers, is_new=True, engine=where)
    return _compared(begun.folder)


def compare(
    recipe: Recipe | None = None,
    *settings: Settings,
    seeds: int | Sequence[int] | None = None,
    only: Sequence[str] = (),
    workers: int = 1,
    engine: Engine = LOCAL,
    reach: Sequence[float] = (),
    fresh: bool = False,
    out: str | Path = "runs",
    progress: bool = True,
    **overrides: Any,
) -> ComparisonResult:
    """Run several arms on one task, as `trillium compare` does; without a recipe, all frameworks.

    Arms that fail are in the table, and in `failures`; the others go on.

    Args:
        recipe: with `arms`; see `run`.
        settings: see `run`. A word with several values, "adapter.r=4,8", makes several arms.
        seeds: how many, or which ones; without, those of the recipe.
        only: labels of the arms to run; by default all.
        workers: runs at a time, each in a process with one thread; with Ray see `run`.
        engine: see `run`.
        reach: accuracies, as shares, to tell the bytes to.
        fresh: whether runs that have finished below `out` are made again.
        out: where the folder of the comparison goes.
        progress: whether it is shown how far the runs are.
        overrides: see `run`; the label of an arm holds what is of that arm alone:
            `fedllm={"adapter": {"r": 4}}`, or `fedllm__adapter__r=4`.

    Raises:
        UserError: something cannot be run.
    """
    found = asked(recipe, settings, overrides, sweeps=True)
    tree = default_comparison(found.tree) if found.recipe is None else found.recipe
    if not all(0 < share <= 1 for share in reach):
        raise UserError(
            f"reach={reach!r}", "these are shares, above 0 and at most 1", "Write [0.8]"
        )
    named = [only] if isinstance(only, str) else only
    comparing = comparison(tree, found.tree, named, found.sweeps)
    numbers = None if seeds is None else _numbers(seeds)
    where = simulation(engine)
    begun = begin_comparison(comparing, numbers, Path(out), reach=reach, fresh=fresh)
    console = _console(progress)
    with _stoppable(begun.folder, is_new=begun.is_new):
        go_all(begun.left, begun.folder, console, workers, is_new=begun.is_new, engine=where)
    return _compared(begun.folder)


def resume(
    folder: str | Path, *, workers: int = 1, engine: Engine = LOCAL, progress: bool = True
) -> RunResult | ComparisonResult:
    """Go on with a run or comparison that was stopped, as `trillium resume` does.

    Raises:
        UserError: the folder is neither, or all of it has finished.
    """
    path = Path(folder)
    experiments = stopped(path)
    console, where = _console(progress), simulation(engine)
    with _stoppable(path, is_new=False):
        if (path / COMPARE_FILE).is_file():
            go_all(experiments, path, console, workers, is_new=False, engine=where)
            return _compared(path)
        [config] = experiments.values()
        reopened = RunFolder.reopen(path)
        go(config, reopened, console, is_new=False, workers=workers, engine=where)
    reported(path)
    return RunResult(path)


@contextmanager
def _stoppable(folder: Path, *, is_new: bool) -> Iterator[None]:
    """Say how to go on with what is interrupted, by Ctrl-C or a notebook's button."""
    try:
        yield
    except KeyboardInterrupt:
        if not (is_new and discard(folder)):
            log.warning("Stopped. Go on with: trillium.resume(%r)", str(folder))
        raise


def _compared(folder: Path) -> ComparisonResult:
    reported(folder)
    result = ComparisonResult(folder)
    for arm, reasons in result.failures.items():
        for seed, why in reasons.items():
            log.warning("%s, seed %s, failed: %s", arm, seed, why)
    return result


def _numbers(seeds: int | Sequence[int]) -> list[int]:
    numbers = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not numbers or min(numbers) < 0:
        raise UserError(f"seeds={seeds!r}", "that is no seed at all", "Write 3, or [0, 5, 7]")
    return numbers


def _console(progress: bool) -> Console:
    return Console(stderr=True, quiet=not progress)
