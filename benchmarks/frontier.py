"""Accuracy against bytes on Banking77: what frontier_fedllm.py and frontier_kd.py have in common.

A benchmark is a recipe beside this file: arms, what the tables call them, targets, and a grid. A run
that has finished is not repeated; the tables and plots are made of all runs that are there, so they
can be had at any time.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bag_of_words import bag_of_words
from banking77 import DATA, read_rows, smaller
from frontier_jobs import Job, is_done, looked_up, run_all
from frontier_results import Results
from trillium.config.comparison import comparison
from trillium.config.experiment import (
    Tree,
    experiment,
    merge,
    parse_overrides,
    read_yaml,
)
from trillium.errors import UserError
from trillium.experiment.folder import new_folder
from trillium.report import human

HERE = Path(__file__).resolve().parent
_COMMON = ("model", "task", "data", "adapter", "training", "evaluation", "rounds")


@dataclass(frozen=True)
class Frontier:
    """A benchmark.

    Attributes:
        name: of the recipe, of the results, and of the folder of runs.
        recipe: its content.
    """

    name: str
    recipe: Tree

    @classmethod
    def read(cls, name: str) -> Frontier:
        """Return the benchmark whose recipe is `<name>.yaml`."""
        return cls(name, read_yaml(HERE / f"{name}.yaml"))

    @property
    def grid(self) -> dict[str, list[str]]:
        """The words of each arm of the tuning grids, by label `<arm>~<number>`."""
        return {
            f"{arm}~{number}": list(words)
            for arm, axes in self.recipe["tuning"]["grids"].items()
            for number, words in enumerate(itertools.product(*axes))
        }

    def parse(self, argv: list[str] | None = None) -> argparse.Namespace:
        """Return the checked command line."""
        recipe = self.recipe
        parser = argparse.ArgumentParser(description="Accuracy against bytes on Banking77")
        add = parser.add_argument
        add("--data", type=Path, default=DATA, help="folder of train.csv and test.csv")
        add("--arms", nargs="+", choices=list(recipe["arms"]))
        add("--partitions", nargs="+", choices=list(recipe["partitions"]))
        add("--seeds", nargs="+", type=int)
        add("--rounds", type=int, help="instead of each arm's own")
        add("--workers", type=int, default=1, help="runs at the same time")
        add("--runs", type=Path, help="parent of the run folders")
        add("--out", type=Path, help="folder of the tables and plots")
        add("--tune", action="store_true", help="run the grids, with a seed of its own")
        add("--tables", action="store_true", help="only read the runs that are there")
        add("--smoke", action="store_true", help="one round on 300 rows, as a test")
        options = parser.parse_args(argv)
        tuning = recipe["tuning"]
        if options.smoke:
            options.arms = options.arms or recipe["smoke"]["arms"]
            options.rounds = options.rounds or 1
        if options.runs is None:
            runs = Path("runs")
            options.runs = (
                new_folder(runs, f"{self.name}_smoke") if options.smoke else runs / self.name
            )
        options.out = options.out or (options.runs if options.smoke else HERE / "results")
        options.seeds = options.seeds or [tuning["seed"] if options.tune else 0]
        chosen = tuning.get("partitions") if options.tune else None
        options.partitions = options.partitions or chosen or list(recipe["partitions"])
        return options

    def jobs(self, options: argparse.Namespace, data: Path) -> list[Job]:
        """Return the runs that were asked for, all of them checked."""
        recipe = self.recipe
        source = {"train": str(data / "train.csv"), "test": str(data / "test.csv")}
        changes: Tree = {"data": {"source": source}}
        if options.smoke:
            changes = merge(changes, parse_overrides(recipe["smoke"]["words"]))
        if options.rounds is not None:
            changes["rounds"] = options.rounds
        words = self.grid if options.tune else {arm: [] for arm in recipe["arms"]}
        found = []
        for partition, seed, label in itertools.product(options.partitions, options.seeds, words):
            arm = label.partition("~")[0]
            if options.arms and arm not in options.arms:
                continue
            plan = comparison({k: recipe[k] for k in (*_COMMON, "arms")}, changes, [arm])
            tree = merge(merge(plan.base, plan.arms[arm]), parse_overrides(words[label]))
            tree = merge(
                tree, {"seed": seed, "data": {"partition": recipe["partitions"][partition]}}
            )
            if options.smoke or options.rounds is not None:
                tree["rounds"] = changes["rounds"]
            folder = options.runs / partition / f"{label}_s{seed}"
            found.append(Job(partition, label, seed, experiment(tree).tree(), folder))
        return found

    def measure(self, options: argparse.Namespace, data: Path, results: Results) -> int:
        """Make the runs that were asked for and return how many failed."""
        todo = [job for job in self.jobs(options, data) if not is_done(job)]
        if todo and not options.tune:
            scores = bag_of_words(read_rows(data / "train.csv"), read_rows(data / "test.csv"))
            results.reference("TF-IDF (1-2 grams), linear SVM", scores)
        print(f"{len(todo)} runs to make", flush=True)
        num_failed, make = 0, partial(looked_up, options.runs / "cache")
        first, rest = todo[:1], todo[1:]  # the first alone, because it fills the cache
        ended = itertools.chain(
            run_all(first, 1, make), run_all(rest, min(options.workers, len(rest) or 1), make)
        )
        for number, (job, failure) in enumerate(ended, start=1):
            num_failed += bool(failure)
            results.collect(options.runs)
            best = results.best(job.partition, job.arm, job.seed)
            shown = failure or (f"best accuracy {human.percent(best)}" if best is not None else "?")
            print(f"[{number}/{len(todo)}] {job.label}: {shown}", flush=True)
        return num_failed


def main(name: str) -> None:
    """Run the benchmark of a name as a program."""
    frontier = Frontier.read(name)
    options = frontier.parse()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    num_failed = 0
    try:
        results = Results(options.out / name, frontier.recipe, frontier.grid)
        if not options.tables:
            if options.smoke:
                with smaller(options.data) as data:
                    num_failed = frontier.measure(options, data, results)
            else:
                num_failed = frontier.measure(options, options.data, results)
        results.collect(options.runs)
        results.write()
    except (UserError, FileNotFoundError) as error:
        raise SystemExit(str(error)) from error
    print(results.markdown())
    sys.exit(1 if num_failed else 0)
