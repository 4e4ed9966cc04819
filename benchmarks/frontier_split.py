"""Split-FedLLM on Banking77: accuracy against bytes, client compute, memory and what activations leak.

The arms are in frontier_split.yaml. A run that has finished is not made again; the tables are made of
all runs that are there.

    python benchmarks/frontier_split.py --smoke
    python benchmarks/frontier_split.py --tune                       # the rates behind the settings
    python benchmarks/frontier_split.py --seeds 0 1 2 --workers 2    # everything
    python benchmarks/frontier_split.py --tables                     # of what has finished
"""

from __future__ import annotations

import argparse
import csv
import itertools
import os
import random
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from banking77 import DATA, smaller
from frontier_jobs import Job, is_done, run_all, shipped_only
from frontier_split_results import Results
from small_models import documents, pretrain, train_tokenizer
from trillium.config.experiment import Tree, experiment, merge, read_yaml
from trillium.errors import UserError
from trillium.experiment.folder import new_folder

HERE = Path(__file__).resolve().parent
NAME = "frontier_split"
_COMMON = ("rounds", "task", "data", "training", "evaluation")


def choose_rows(path: Path, per_class: int, folder: Path) -> Path:
    """Write so many rows of each class, drawn from a file with seed 0, and return where."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    random.Random(0).shuffle(rows)
    counts: Counter[str] = Counter()
    kept = []
    for row in rows:
        counts[row["category"]] += 1
        if counts[row["category"]] <= per_class:
            kept.append(row)
    found = folder / "train.csv"
    with found.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["text", "category"])
        writer.writeheader()
        writer.writerows(kept)
    return found


def warm_up(plan: Tree, texts: Path, num_steps: int, folder: Path) -> None:
    """Write the second model, if it is not there: a decoder that has read some megabytes."""
    if (folder / "config.json").is_file():
        return
    read = documents(texts / plan["text"], int(1e6 * plan["megabytes"]))
    tokenizer = train_tokenizer(read, plan["vocabulary"])
    pretrain(plan["kind"], plan["sizes"], tokenizer, read, num_steps, folder)


@dataclass(frozen=True)
class Benchmark:
    """What the recipe asks for, in one place.

    Attributes:
        recipe: its content.
        options: the command line.
        prepared: folder of the training rows and of the models.
    """

    recipe: Tree
    options: argparse.Namespace
    prepared: Path

    def prepare(self) -> None:
        """Write the training rows and the model that cannot be had elsewhere."""
        self.prepared.mkdir(parents=True, exist_ok=True)
        choose_rows(self.options.data / "train.csv", self.recipe["rows_per_class"], self.prepared)
        plan = self.recipe["warm_up"]
        num_steps = self.recipe["smoke"]["steps"] if self.options.smoke else plan["steps"]
        if "gpt2" in self.options.models:
            warm_up(plan, self.options.texts, num_steps, self.prepared / "gpt2")

    def jobs(self) -> Iterator[Job]:
        """Yield the runs that were asked for, all of them checked, a seed after the other."""
        options, tuning = self.options, self.recipe["tuning"]
        for seed, model, arm in itertools.product(options.seeds, options.models, options.arms):
            cuts = [tuning["cut"]] if options.tune else self.recipe["arms"][arm]["cuts"]
            for cut in (cut for cut in cuts if options.cuts is None or cut in options.cuts):
                for rate in tuning["rates"] if options.tune else [None]:
                    yield self._job(model, arm, cut, seed, rate)

    def _job(self, model: str, arm: str, cut: int, seed: int, rate: float | None) -> Job:
        recipe, options = self.recipe, self.options
        how, of_model = recipe["arms"][arm], recipe["models"][model]
        tree = merge({key: recipe[key] for key in _COMMON}, of_model["settings"])
        tree = merge(merge(tree, how["settings"]), {"seed": seed, "framework": {"cut": cut}})
        source = {"train": str(self.prepared / "train.csv"), "test": str(options.data / "test.csv")}
        tree = merge(tree, {"data": {"source": source}})
        tree["training"]["optimizer"]["lr"] = rate or of_model["rates"][how["rate"]]
        if how["rate"] == "pooled":
            tree["training"]["batch_size"] = recipe["pooled_batch_size"]
        if how.get("server_alone"):
            tree["adapter"]["layers"] = list(range(cut, recipe["num_blocks"]))
        if model == "gpt2":
            tree["model"]["id"] = str(self.prepared / "gpt2")
        label = f"{arm}_cut{cut}"
        if rate is not None:
            rounds = recipe["tuning"]["rounds"]
            tree = merge(tree, {"rounds": rounds, "evaluation": {"every": rounds}})
            label += f"~{rate:g}"
        elif model in how.get("leakage", ()) and seed == recipe["leakage_seed"]:
            tree["framework"]["leakage"] = True
        if options.smoke:
            tree = merge(tree, recipe["smoke"]["settings"])
        folder = options.runs / model / f"{label}_s{seed}"
        return Job(model, label, seed, experiment(tree).tree(), folder)

    def measure(self, results: Results) -> int:
        """Make the runs that were asked for and return how many failed."""
        self.prepare()
        todo = [job for job in self.jobs() if not is_done(job)]
        print(f"{len(todo)} runs to make", flush=True)
        num_failed = 0
        workers = min(self.options.workers, len(todo) or 1)
        for number, (job, failure) in enumerate(run_all(todo, workers, shipped_only), start=1):
            num_failed += bool(failure)
            results.collect(self.options.runs)
            shown = failure or results.shown(job.partition, job.arm, job.seed)
            print(f"[{number}/{len(todo)}] {job.label}: {shown}", flush=True)
        return num_failed


def parse(recipe: Tree, argv: list[str] | None = None) -> argparse.Namespace:
    """Return the checked command line."""
    parser = argparse.ArgumentParser(description="Split-FedLLM on Banking77")
    add = parser.add_argument
    add("--data", type=Path, default=DATA, help="folder of train.csv and test.csv")
    add("--texts", type=Path, default=DATA.parent / "text", help="folder of the warm-up's text")
    add("--models", nargs="+", choices=list(recipe["models"]), default=list(recipe["models"]))
    add("--arms", nargs="+", choices=list(recipe["arms"]))
    add("--cuts", nargs="+", type=int)
    add("--seeds", nargs="+", type=int)
    add("--workers", type=int, default=1, help="runs at the same time")
    add("--runs", type=Path, help="parent of the run folders")
    add("--out", type=Path, help="folder of the tables and the plot")
    add("--tune", action="store_true", help="run the rates, with a seed of their own")
    add("--tables", action="store_true", help="only read the runs that are there")
    add("--smoke", action="store_true", help="one round on 300 rows, as a test")
    options = parser.parse_args(argv)
    own = "smoke" if options.smoke else "tuning" if options.tune else None
    options.arms = options.arms or list(recipe[own or "arms"]["arms"] if own else recipe["arms"])
    options.seeds = options.seeds or [recipe["tuning"]["seed"] if options.tune else 0]
    if options.runs is None:
        runs = Path("runs")
        options.runs = new_folder(runs, f"{NAME}_smoke") if options.smoke else runs / NAME
    options.out = options.out or (options.runs if options.smoke else HERE / "results")
    return options


def main() -> None:
    """Run the benchmark."""
    recipe = read_yaml(HERE / f"{NAME}.yaml")
    options = parse(recipe)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    num_failed = 0
    try:
        results = Results(options.out / NAME, recipe)
        if options.smoke:
            with smaller(options.data) as options.data:
                num_failed = Benchmark(recipe, options, options.runs / "prepared").measure(results)
        elif not options.tables:
            num_failed = Benchmark(recipe, options, options.runs / "prepared").measure(results)
        results.collect(options.runs)
        results.write()
    except (UserError, FileNotFoundError) as error:
        raise SystemExit(str(error)) from error
    print(results.markdown())
    sys.exit(1 if num_failed else 0)


if __name__ == "__main__":
    main()
