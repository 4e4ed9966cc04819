"""Tokens per second of Split-FedLLM across processes, beside the same run in one process.

Each run is made twice: in the local engine, and as a deployment on the loopback, with a SuperLink and
a SuperNode for each client, TLS, node authentication, and sessions with mutual TLS, as `trillium up`
makes it. Both have the same recipe, seed and threads for each process, must send the same bytes, and
end with the same loss, or the script fails. The sides take turns, and which one begins alternates.

    OMP_NUM_THREADS=1 python benchmarks/split_deployed.py
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table

from measured import write_found
from trillium.config.experiment import ExperimentConfig, experiment
from trillium.deploy.launch import Federation
from trillium.deploy.prepare import RUNS, federation, prepare_here
from trillium.experiment.folder import RunFolder
from trillium.experiment.run import build
from trillium.quiet import quiet

RESULTS = Path(__file__).parent / "results"
GOAL = 0.8
LIMIT = 1800.0
FIRST = 1  # the round in which FLOPs are counted and libraries warm up; left out


def configuration(num_nodes: int, num_examples: int, num_rounds: int) -> ExperimentConfig:
    """Return the experiment of both sides."""
    source = {"name": "builtin", "num_train": num_nodes * num_examples, "num_test": 38}
    return experiment(
        {
            "rounds": num_rounds,
            "framework": {"name": "split", "shape": "two_part", "mode": "coalesced"},
            "model": {"id": "minilm"},
            "data": {"source": source, "num_clients": num_nodes, "public_size": 0},
            "training": {"batch_size": 16, "local_epochs": 1},
        }
    )


def local(config: ExperimentConfig, folder: Path) -> tuple[Path, int]:
    """Run it in this process; return the run folder and how many tokens a round has."""
    built = build(config, RunFolder(folder, "split"))
    num_tokens = sum(len(e.input_ids) for client in built.clients for e in client.examples)
    built.run()
    return folder, num_tokens


def deployed(running: Federation) -> Path:
    """Run it in the federation's processes, and return the run folder."""
    runs = running.app.parent / RUNS
    before = {*runs.glob("*")}
    status = running.wait(running.submit(), LIMIT)
    if not status.completed:
        raise SystemExit(f"{status.state}: {status.details}; logs in {running.work / 'logs'}")
    [folder] = {*runs.glob("*")} - before
    return folder


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    """Return the lines of a file of a run."""
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def seconds(folder: Path) -> list[float]:
    """Return what each round took, evaluation and checkpoint not counted, without the first."""
    total = [line["seconds"] for line in lines(folder, "metrics.jsonl")]
    return [after - before for before, after in pairwise(total)][FIRST:]


def check_same_work(one: Path, other: Path) -> None:
    """Stop if two runs did not send the same, or did not learn the same."""
    sums = []
    for folder in (one, other):
        sent = {"up": 0, "down": 0}
        for line in lines(folder, "wire.jsonl"):
            sent[line["direction"]] += line["bytes"]
        sums.append((sent, lines(folder, "metrics.jsonl")[-1]["loss"]))
    if sums[0] != sums[1]:
        raise SystemExit(f"this is not the same work: bytes and loss are {sums[0]} and {sums[1]}")


def measure(num_nodes: int, num_examples: int, num_rounds: int, repetitions: int) -> dict[str, Any]:
    """Run both sides by turns and return what was measured."""
    config = configuration(num_nodes, num_examples, num_rounds)
    found: dict[str, list[float]] = {"local": [], "deployed": []}
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        nodes = prepare_here(config, place / "federation")
        for number in range(repetitions):
            folders: dict[str, Path] = {}
            for side in ("local", "deployed") if number % 2 else ("deployed", "local"):
                if side == "local":
                    folders[side], num_tokens = local(config, place / f"local_{number}")
                else:
                    # Not up while the other side runs: its processes poll.
                    with federation(place / "federation", nodes) as running:
                        folders[side] = deployed(running)
                found[side] += seconds(folders[side])
            check_same_work(folders["local"], folders["deployed"])
    pairs = list(zip(found["deployed"], found["local"], strict=True))
    return {
        "num_nodes": num_nodes,
        "tokens_per_round": num_tokens,
        "tokens_per_second": {
            side: num_tokens / statistics.median(taken) for side, taken in found.items()
        },
        # Neighbours in time see the same machine.
        "ratio": statistics.median(b / a for a, b in pairs),
        "ratio_min": min(b / a for a, b in pairs),
        "ratio_max": max(b / a for a, b in pairs),
        "ratio_of_fastest": min(found["local"]) / min(found["deployed"]),
        "seconds": found,
    }


def show(found: list[dict[str, Any]]) -> None:
    """Print the table."""
    table = Table(
        title=f"Split-FedLLM, MiniLM, {torch.get_num_threads()} thread(s) for each process",
        caption=f"medians over rounds; the goal for the ratio is {GOAL}",
    )
    for title in ("Nodes", "Local", "Deployed", "Ratio", "Lowest", "Highest", "Fastest"):
        table.add_column(title, justify="right")
    for line in found:
        speeds = [
            f"{line['tokens_per_second'][side]:.0f} tokens/s" for side in ("local", "deployed")
        ]
        keys = ("ratio", "ratio_min", "ratio_max", "ratio_of_fastest")
        table.add_row(str(line["num_nodes"]), *speeds, *[f"{line[key]:.3f}" for key in keys])
    Console(width=110).print(table)


def main() -> None:
    """Measure, print and write `results/split_deployed.json`."""
    parser = argparse.ArgumentParser(description="Split-FedLLM: deployed beside local")
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--examples", type=int, default=160, help="of each client")
    parser.add_argument("--rounds", type=int, default=4, help="of each run; the first is left out")
    parser.add_argument("--repetitions", type=int, default=3, help="runs of each side")
    parser.add_argument("--out", type=Path, default=RESULTS / "split_deployed.json")
    options = parser.parse_args()
    quiet()
    transformers.logging.set_verbosity_error()
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
    load_before = os.getloadavg()[0]
    found = [
        measure(number, options.examples, options.rounds, options.repetitions)
        for number in options.nodes
    ]
    show(found)
    write_found(options.out, load_before, found, goal=GOAL)


if __name__ == "__main__":
    main()
