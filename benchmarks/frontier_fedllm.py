"""Accuracy against bytes: FedLLM's settings and their published relatives on Banking77.

The arms are in frontier_fedllm.yaml. A run that has finished is not repeated; the tables and plots are
made of all runs that are there, so they can be had at any time.

    python benchmarks/frontier_fedllm.py --smoke
    python benchmarks/frontier_fedllm.py --tune --workers 2          # the grids behind the settings
    python benchmarks/frontier_fedllm.py --seeds 0 1 2 --workers 2   # everything
    python benchmarks/frontier_fedllm.py --tables                    # of what has finished
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

from bag_of_words import bag_of_words
from banking77 import DATA, read_rows, smaller
from frontier_cache import PrefixCache, cached_prefix, check_cached
from frontier_results import Results
from trillium.adapters.lora import Lora
from trillium.config import (
    ExperimentConfig,
    Tree,
    comparison,
    experiment,
    merge,
    parse_overrides,
    read_yaml,
)
from trillium.errors import UserError
from trillium.experiment import build
from trillium.report import human
from trillium.run_folder import RunFolder, is_finished, new_folder

HERE = Path(__file__).resolve().parent
RECIPE = HERE / "frontier_fedllm.yaml"
SMOKE = ["rounds=1", "training.local_steps=2", "data.num_clients=3"]
SMOKE_ARMS = ("centralised", "fedavg", "fedex", "ours")


@dataclass(frozen=True)
class Job:
    """One run to make.

    Attributes:
        partition, arm, seed: what it is.
        tree: its configuration.
        folder: where it goes.
    """

    partition: str
    arm: str
    seed: int
    tree: Tree
    folder: Path

    @property
    def label(self) -> str:
        """What the log calls it."""
        return f"{self.partition} {self.arm} seed {self.seed}"

    def config(self) -> ExperimentConfig:
        """Return the checked configuration."""
        return experiment(self.tree)


def grid(recipe: Tree) -> dict[str, list[str]]:
    """Return the words of each arm of the tuning grids, by label `<arm>~<number>`."""
    return {
        f"{arm}~{number}": list(words)
        for arm, axes in recipe["tuning"]["grids"].items()
        for number, words in enumerate(itertools.product(*axes))
    }


def jobs(options: argparse.Namespace, data: Path) -> list[Job]:
    """Return the runs that were asked for, all of them checked."""
    recipe = read_yaml(RECIPE)
    source = {"train": str(data / "train.csv"), "test": str(data / "test.csv")}
    changes: Tree = {"data": {"source": source}}
    if options.smoke:
        changes = merge(changes, parse_overrides(SMOKE))
    if options.rounds is not None:
        changes["rounds"] = options.rounds
    words = grid(recipe) if options.tune else {arm: [] for arm in recipe["arms"]}
    found = []
    for partition, seed, label in itertools.product(options.partitions, options.seeds, words):
        arm = label.partition("~")[0]
        if options.arms and arm not in options.arms:
            continue
        plan = comparison({k: recipe[k] for k in (*_COMMON, "arms")}, changes, [arm])
        tree = merge(merge(plan.base, plan.arms[arm]), parse_overrides(words[label]))
        tree = merge(tree, {"seed": seed, "data": {"partition": recipe["partitions"][partition]}})
        if options.smoke or options.rounds is not None:
            tree["rounds"] = changes["rounds"]
        folder = options.runs / partition / f"{label}_s{seed}"
        found.append(Job(partition, label, seed, experiment(tree).tree(), folder))
    return found


_COMMON = ("model", "task", "data", "adapter", "training", "evaluation", "rounds")


def is_done(job: Job) -> bool:
    """Whether a run has finished.

    Raises:
        UserError: there is one of the same name and another configuration.
    """
    written = job.folder / "config.yaml"
    if written.is_file() and read_yaml(written) != job.tree:
        raise UserError(
            str(job.folder),
            "it holds a run of other settings",
            "Remove it, or give another folder with --runs",
        )
    return (job.folder / "status.json").is_file() and is_finished(job.folder)


def run(job: Job, caches: Path) -> str:
    """Make one run, or go on with it; returns what failed, nothing if all went well."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    begun = (job.folder / "status.json").is_file()
    folder = RunFolder.reopen(job.folder) if begun else RunFolder(job.folder, job.arm)
    try:
        _run(job.config(), folder, caches)
    except Exception as error:  # the others go on
        reason = f"{type(error).__name__}: {error}"
        folder.status("failed", reason)
        return reason
    return ""


def _run(config: ExperimentConfig, folder: RunFolder, caches: Path) -> None:
    built = build(config, folder, argv=sys.argv)
    assert isinstance(config.adapter, Lora)
    examples = [*built.server.pooled, *built.server.test]
    depth = min(config.adapter.layers or (0,))
    cache = PrefixCache.of(built.model, depth, examples, caches)
    check_cached(built.model, cache, examples[:8])
    with cached_prefix(built.model, cache):
        built.run()


def run_all(todo: Iterable[Job], workers: int, caches: Path) -> Iterator[tuple[Job, str]]:
    """Make runs in so many processes and yield each, when it has ended, with what failed."""
    if workers == 1:
        for job in todo:
            yield job, run(job, caches)
        return
    # A started process: one that is forked would inherit PyTorch's threads in an unknown state.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        futures = {pool.submit(run, job, caches): job for job in todo}
        for future in as_completed(futures):
            yield futures[future], future.result()


def measure(options: argparse.Namespace, data: Path, results: Results) -> int:
    """Make the runs that were asked for and return how many failed."""
    todo = [job for job in jobs(options, data) if not is_done(job)]
    if todo and not options.tune:
        scores = bag_of_words(read_rows(data / "train.csv"), read_rows(data / "test.csv"))
        results.reference("TF-IDF (1-2 grams), linear SVM", scores)
    print(f"{len(todo)} runs to make", flush=True)
    num_failed, caches = 0, options.runs / "cache"
    first, rest = todo[:1], todo[1:]  # the first alone, because it fills the cache
    ended = itertools.chain(
        run_all(first, 1, caches), run_all(rest, min(options.workers, len(rest) or 1), caches)
    )
    for number, (job, failure) in enumerate(ended, start=1):
        num_failed += bool(failure)
        results.collect(options.runs)
        best = results.best(job.partition, job.arm, job.seed)
        shown = failure or (f"best accuracy {human.percent(best)}" if best is not None else "?")
        print(f"[{number}/{len(todo)}] {job.label}: {shown}", flush=True)
    return num_failed


def parse(recipe: Tree, argv: list[str] | None = None) -> argparse.Namespace:
    """Return the checked command line."""
    parser = argparse.ArgumentParser(description="Accuracy against bytes on Banking77")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of train.csv and test.csv")
    parser.add_argument("--arms", nargs="+", choices=list(recipe["arms"]))
    parser.add_argument(
        "--partitions", nargs="+", default=list(recipe["partitions"]), choices=recipe["partitions"]
    )
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument("--rounds", type=int, help="instead of each arm's own")
    parser.add_argument("--workers", type=int, default=1, help="runs at the same time")
    parser.add_argument("--runs", type=Path, help="parent of the run folders")
    parser.add_argument("--out", type=Path, help="folder of the tables and plots")
    parser.add_argument("--tune", action="store_true", help="run the grids, with a seed of its own")
    parser.add_argument("--tables", action="store_true", help="only read the runs that are there")
    parser.add_argument("--smoke", action="store_true", help="one round on 300 rows, as a test")
    options = parser.parse_args(argv)
    if options.smoke:
        options.arms = options.arms or list(SMOKE_ARMS)
        options.rounds = options.rounds or 1
    smoke = new_folder(Path("runs"), "frontier_smoke")
    options.runs = options.runs or (smoke if options.smoke else Path("runs") / "frontier")
    options.out = options.out or (options.runs if options.smoke else HERE / "results")
    options.seeds = options.seeds or [recipe["tuning"]["seed"] if options.tune else 0]
    return options


def main() -> None:
    """Run the benchmark."""
    recipe = read_yaml(RECIPE)
    options = parse(recipe)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    num_failed = 0
    try:
        results = Results(options.out / "frontier_fedllm", recipe, grid(recipe))
        if not options.tables:
            if options.smoke:
                with smaller(options.data) as data:
                    num_failed = measure(options, data, results)
            else:
                num_failed = measure(options, options.data, results)
        results.collect(options.runs)
        results.write()
    except (UserError, FileNotFoundError) as error:
        raise SystemExit(str(error)) from error
    print(results.markdown())
    sys.exit(1 if num_failed else 0)


if __name__ == "__main__":
    main()
