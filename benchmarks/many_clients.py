"""What more clients cost, where a round asks twenty of them: processor time and memory.

FedLLM with a tiny model and nine rows a client, so that all that is left is what surrounds the work.
Each figure is of a fresh process, its processor seconds and what it holds by itself; sizes take turns.

    OMP_NUM_THREADS=1 python benchmarks/many_clients.py
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
from rich.console import Console
from rich.table import Table

from speed import Found, program
from tiny_models import CLASSES, write_checkpoint, write_tokenizer
from trillium.config.experiment import experiment
from trillium.experiment.folder import RunFolder
from trillium.experiment.run import build
from trillium.report.write import write_report

ROWS, ASKED, ROUNDS = 9, 20, 6
FIGURES = {
    "setup": "set-up, CPU s",
    "setup_per_client": "ms a client",
    "round": "a round, CPU s",
    "memory": "MB before it",
    "memory_of_clients": "MB more, set up",
    "memory_of_rounds": "MB more, run",
    "report": "report, CPU s",
}


def write(place: Path, num_clients: int) -> None:
    """Write rows for so many clients, and a model for all."""
    write_checkpoint(place / "model", "bert", "classification")
    write_tokenizer(place / "model")
    lines = []
    for row in range(ROWS * num_clients + 30):
        digits = [row % 3, row % 40, row // 40 % 40, row // 1600 % 40, row // 64_000]
        words = " ".join(f"w{digit}" for digit in [*digits, *range(row % 7)])
        lines.append(json.dumps({"text": words, "label": CLASSES[row % 3]}))
    (place / "test.jsonl").write_text("\n".join(lines[:30]), encoding="utf-8")
    (place / "train.jsonl").write_text("\n".join(lines[30:]), encoding="utf-8")


def resident() -> float:
    """Return the megabytes that this process holds by itself."""
    return float(psutil.Process().memory_full_info().uss) / 1e6


def one(num_clients: int) -> Found:
    """Set up and run a federation in this process, and return what it took."""
    with tempfile.TemporaryDirectory() as path:
        place = Path(path)
        write(place, num_clients)
        tree: dict[str, Any] = {
            "rounds": ROUNDS,
            "model": {"id": str(place / "model"), "random_weights": True},
            "data": {
                "source": {
                    "name": "files",
                    "train": str(place / "train.jsonl"),
                    "test": str(place / "test.jsonl"),
                },
                "num_clients": num_clients,
            },
            "fleet": {"clients_per_round": min(ASKED, num_clients)},
            "training": {"local_steps": 1},
            "evaluation": {"every": ROUNDS},
        }
        config = experiment(tree)
        before, start = resident(), time.process_time()
        run = build(config, RunFolder(place / "runs", "many"))
        found = {"setup": time.process_time() - start}
        found["memory"], found["memory_of_clients"] = before, resident() - before
        seconds: list[float] = []
        run.run(lambda _: seconds.append(time.process_time()))
        found["memory_of_rounds"] = resident() - before
        found["round"] = (seconds[-1] - seconds[0]) / ROUNDS
        found["setup_per_client"] = found["setup"] / num_clients * 1e3
        assert run.folder is not None
        start = time.process_time()
        write_report(run.folder.path)
        return {**found, "report": time.process_time() - start}


def options(parser: argparse.ArgumentParser) -> None:
    """Add what can be chosen."""
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 100, 1000, 10_000])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)


def run(chosen: argparse.Namespace) -> tuple[list[Found], Found]:
    """Measure each size in processes of its own, by turns, and return medians."""
    if chosen.one:
        print(json.dumps(one(chosen.one)))
        raise SystemExit
    seen: dict[int, list[Found]] = {size: [] for size in chosen.sizes}
    for _ in range(chosen.repetitions):
        for size in chosen.sizes:
            call = [sys.executable, __file__, "--one", str(size)]
            done = subprocess.run(call, check=True, stdout=subprocess.PIPE, text=True)
            seen[size].append(json.loads(done.stdout.splitlines()[-1]))
    found = [
        {"clients": size, **{k: statistics.median(one[k] for one in runs) for k in FIGURES}}
        for size, runs in seen.items()
    ]
    table = Table("clients", *FIGURES.values(), title=f"{ASKED} asked in a round, medians")
    for line in found:
        table.add_row(str(line["clients"]), *(f"{line[key]:.3g}" for key in FIGURES))
    Console(width=120).print(table)
    return found, {"rows_per_client": ROWS, "asked": ASKED, "rounds": ROUNDS}


if __name__ == "__main__":
    program("many_clients", "What more clients cost", options, run)
