"""Runs and comparisons begun in folders of their own, in sight of whoever waits for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from trillium.api.screen import Screen
from trillium.config.comparison import CompareConfig
from trillium.config.experiment import ExperimentConfig, Tree, experiment, merge
from trillium.engines.simulation import Simulation
from trillium.errors import UserError
from trillium.experiment.arm import Key, run_one
from trillium.experiment.compare import prepare, run_arms
from trillium.experiment.folder import RunFolder, discard, new_folder
from trillium.experiment.reuse import take_finished
from trillium.experiment.tracking import check_trackers
from trillium.quiet import quiet


@dataclass(frozen=True)
class Begun:
    """A folder of several runs, and those that are still to be made.

    Attributes:
        left: the runs to make.
        num_taken: how many had finished before, and were taken from other folders.
        is_new: whether it holds none yet, and goes if none can be begun.
    """

    folder: Path
    left: dict[Key, ExperimentConfig]
    num_taken: int = 0

    @property
    def is_new(self) -> bool:
        """Whether nothing has been measured in it."""
        return not self.num_taken


def begin_run(config: ExperimentConfig, out: Path) -> RunFolder:
    """Make the folder of one run.

    Raises:
        UserError: it names a tracker that is not installed.
    """
    check_trackers(config.report.track)
    name = f"{config.framework.name}_{config.data.source.name}_s{config.seed}"
    return RunFolder(new_folder(out, name), config.framework.name)


def begin_seeds(tree: Tree, seeds: Sequence[int], out: Path) -> Begun:
    """Make the folder of one experiment with several seeds."""
    configs = {seed: experiment(merge(tree, {"seed": seed})) for seed in seeds}
    first = configs[seeds[0]]
    check_trackers(first.report.track)
    name = f"{first.framework.name}_{first.data.source.name}"
    folder = new_folder(out, name)
    runs = {(first.framework.name, seed): config for seed, config in configs.items()}
    prepare(runs, folder)
    return Begun(folder, runs)


def begin_comparison(
    comparing: CompareConfig,
    seeds: Sequence[int] | None,
    out: Path,
    *,
    verb: str = "compare",
    reach: Sequence[float] = (),
    fresh: bool = False,
) -> Begun:
    """Make the folder of a comparison, and put into it what has finished below `out` already.

    Args:
        verb: begins the name of the folder.
        reach: accuracies, as shares, to tell the bytes to; without any those of the recipe.
        fresh: take nothing that has finished.
    """
    experiments = comparing.experiments(seeds)
    for config in experiments.values():
        check_trackers(config.report.track)
    source = next(iter(experiments.values())).data.source.name
    told = {**comparing.told(), **({"reach": list(reach)} if reach else {})}
    folder = new_folder(out, f"{verb}_{source}")
    prepare(experiments, folder, told)
    taken = {} if fresh else take_finished(experiments, folder, out)
    left = {key: config for key, config in experiments.items() if key not in taken}
    return Begun(folder, left, len(taken))


def go(
    config: ExperimentConfig,
    folder: RunFolder,
    console: Console,
    argv: Sequence[str] = (),
    *,
    is_new: bool,
    workers: int,
    engine: Simulation,
) -> None:
    """Run one experiment in its folder, showing how far it is.

    Args:
        is_new: whether the folder was made for it, and goes if the run cannot be begun.

    Raises:
        UserError: it cannot be run.
        RoundFailed: too few clients stayed in a round.
    """
    quiet()
    key = (folder.arm, config.seed)
    try:
        with (
            engine.opened(workers, [config]) as (_, host),
            host() as made,
            Screen(console, {key: config.rounds * config.framework.trains}) as screen,
        ):
            seen = screen.begin(*key)
            run_one(config, folder, seen.observe, seen.watch, argv, made)
    except UserError:
        if is_new:
            discard(folder.path)
        raise


def go_all(
    experiments: Mapping[Key, ExperimentConfig],
    folder: Path,
    console: Console,
    workers: int,
    argv: Sequence[str] = (),
    *,
    is_new: bool,
    engine: Simulation,
) -> dict[Key, str]:
    """Run those experiments that have not finished, showing how far they are; return the failures.

    Args:
        is_new: whether the folder was made for them, and goes if none can be begun.

    Raises:
        NoneBegunError: none could be begun.
    """
    quiet()
    rounds = {key: config.rounds * config.framework.trains for key, config in experiments.items()}
    try:
        with (
            engine.opened(workers, list(experiments.values())) as (at_a_time, host),
            Screen(console, rounds) as screen,
        ):
            failures = run_arms(
                experiments,
                folder,
                begin=screen.begin,
                argv=argv,
                workers=at_a_time,
                host=host,
            )
    except UserError:
        if is_new:
            discard(folder)
        raise
    if is_new and failures and discard(folder):
        raise NoneBegunError(list(dict.fromkeys(failures.values())))
    return failures


class NoneBegunError(UserError):
    """None of several runs could be begun."""

    def __init__(self, reasons: Sequence[str]) -> None:
        self.reasons = tuple(reasons)
        super().__init__(
            "the runs", f"none could be begun: {' '.join(reasons)}", "Correct that, and begin anew"
        )

    def __reduce__(self) -> tuple[type[NoneBegunError], tuple[Sequence[str]]]:  # type: ignore[override]
        """Pickle it whole."""
        return type(self), (self.reasons,)
