"""The three frameworks and their baselines on Banking77, with even and with skewed labels.

The settings are in banking77.yaml. Each finished run is added to the results, where it replaces one
of the same partition, arm and seed, so that a long benchmark can be run arm by arm.

    python benchmarks/banking77.py --smoke
    python benchmarks/banking77.py --arms fedllm split --partitions iid --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers

from bag_of_words import bag_of_words
from banking77_results import Results
from trillium.config.comparison import CompareConfig, comparison
from trillium.config.experiment import merge, read_yaml
from trillium.errors import UserError
from trillium.experiment.compare import compare
from trillium.experiment.folder import new_folder
from trillium.report import human
from trillium.report.write import write_report

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[1] / "shared" / "data" / "banking77"
PARTITIONS: dict[str, dict[str, Any]] = {
    "iid": {"name": "iid"},
    "dirichlet_0.1": {"name": "dirichlet", "alpha": 0.1},
}
SMOKE = {"rounds": 1, "data": {"public_size": 40}}
SMOKE_CLASSES, SMOKE_TRAIN, SMOKE_TEST = 10, 30, 10  # classes, and rows of each class


def read_rows(path: Path) -> tuple[list[str], list[str]]:
    """Return texts and classes of a file."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [row["text"] for row in rows], [row["category"] for row in rows]


@contextmanager
def smaller(data: Path) -> Iterator[Path]:
    """Give a folder with the first rows of the first classes, removed in the end."""
    with tempfile.TemporaryDirectory() as name:
        for split, most in (("train", SMOKE_TRAIN), ("test", SMOKE_TEST)):
            texts, classes = read_rows(data / f"{split}.csv")
            kept = sorted(set(classes))[:SMOKE_CLASSES]
            with (Path(name) / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(["text", "category"])
                for each in kept:
                    found = [t for t, c in zip(texts, classes, strict=True) if c == each]
                    writer.writerows([text, each] for text in found[:most])
        yield Path(name)


def settings(options: argparse.Namespace, data: Path, partition: str) -> CompareConfig:
    """Return the recipe with what the command line changes."""
    source = {"train": str(data / "train.csv"), "test": str(data / "test.csv")}
    changes: dict[str, Any] = {"data": {"source": source, "partition": PARTITIONS[partition]}}
    if options.smoke:
        changes = merge(changes, SMOKE)
    if options.rounds is not None:
        changes["rounds"] = options.rounds
    if options.dtype is not None:
        changes["model"] = {"dtype": options.dtype}
    return comparison(read_yaml(HERE / "banking77.yaml"), changes, options.arms)


def run(options: argparse.Namespace, data: Path, results: Results) -> int:
    """Run what was asked for and return how many runs failed."""
    # All are checked before the first one runs.
    plans = {
        partition: settings(options, data, partition).experiments(options.seeds)
        for partition in options.partitions
    }
    results.reference(
        "TF-IDF (1-2 grams), linear SVM",
        bag_of_words(read_rows(data / "train.csv"), read_rows(data / "test.csv")),
    )
    num_failed = 0
    for partition, experiments in plans.items():
        folder = new_folder(options.runs, f"banking77_{partition}")

        def begin(arm: str, seed: int, at: Path = folder, label: str = partition) -> Printed:
            results.add(label, at)  # what has finished so far
            print(f"{label} {arm} seed {seed}", flush=True)
            return Printed()

        failures = compare(experiments, folder, begin=begin, argv=sys.argv)
        results.add(partition, folder)
        print(f"report: {write_report(folder)}")
        for (arm, seed), reason in failures.items():
            print(f"{partition} {arm} seed {seed} failed: {reason}", file=sys.stderr)
        num_failed += len(failures)
    return num_failed


class Printed:
    """Prints how a run goes on."""

    def observe(self, line: dict[str, Any]) -> None:
        """Print an evaluation."""
        accuracy, seconds = human.percent(line["accuracy"]), human.duration(line["seconds"])
        print(f"  round {line['round']}: accuracy {accuracy}, {seconds}", flush=True)

    def watch(self, entry: object) -> None:
        """Print no message."""

    def end(self) -> None:
        """Print nothing more."""


def main() -> None:
    """Run the benchmark."""
    arms = list(read_yaml(HERE / "banking77.yaml")["arms"])
    parser = argparse.ArgumentParser(description="The frameworks on Banking77")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of train.csv and test.csv")
    parser.add_argument("--arms", nargs="+", default=arms, choices=arms)
    parser.add_argument(
        "--partitions", nargs="+", default=list(PARTITIONS), choices=list(PARTITIONS)
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--dtype", help="of the model, e.g. bfloat16")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="parent of run folders")
    parser.add_argument("--out", type=Path, help="folder of banking77.json and banking77.md")
    parser.add_argument("--smoke", action="store_true", help="one round on 300 rows, as a test")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    out = options.out or (options.runs / "smoke" if options.smoke else HERE / "results")
    try:
        results = Results(out / "banking77", arms)
        if options.smoke:
            with smaller(options.data) as data:
                num_failed = run(options, data, results)
        else:
            num_failed = run(options, options.data, results)
    except (UserError, FileNotFoundError) as error:
        raise SystemExit(str(error)) from error
    print(results.markdown())
    sys.exit(1 if num_failed else 0)


if __name__ == "__main__":
    main()
