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
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

from speed import Found, compared, in_turn, program, show
from trillium.config.experiment import ExperimentConfig, experiment
from trillium.deploy.launch import Federation
from trillium.deploy.prepare import RUNS, federation, prepare_here
from trillium.experiment.folder import RunFolder
from trillium.experiment.run import build

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
            "data": {"source": source, "num_clients": num_nodes},
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


def measure(num_nodes: int, num_examples: int, num_rounds: int, repetitions: int) -> Found:
    """Run both sides by turns and return what was measured."""
    config = configuration(num_nodes, num_examples, num_rounds)
    speeds: dict[str, list[float]] = {"local": [], "deployed": []}
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        nodes = prepare_here(config, place / "federation")
        for number in range(repetitions):
            folders: dict[str, Path] = {}
            for side in in_turn(("local", "deployed"), number):
                if side == "local":
                    folders[side], num_tokens = local(config, place / f"local_{number}")
                else:
                    # Not up while the other side runs: its processes poll.
                    with federation(place / "federation", nodes) as running:
                        folders[side] = deployed(running)
            check_same_work(folders["local"], folders["deployed"])
            for side, folder in folders.items():
                speeds[side] += [num_tokens / taken for taken in seconds(folder)]
    return {"num_nodes": num_nodes, "tokens_per_round": num_tokens, **compared(speeds)}


def options(parser: argparse.ArgumentParser) -> None:
    """Add what can be chosen."""
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--examples", type=int, default=160, help="of each client")
    parser.add_argument("--rounds", type=int, default=4, help="of each run; the first is left out")
    parser.add_argument("--repetitions", type=int, default=3, help="runs of each side")


def run(chosen: argparse.Namespace) -> tuple[list[Found], Found]:
    """Measure with each number of nodes."""
    found = [
        measure(number, chosen.examples, chosen.rounds, chosen.repetitions)
        for number in chosen.nodes
    ]
    show("Split-FedLLM, MiniLM", [(f"{line['num_nodes']} node(s)", line) for line in found], GOAL)
    return found, {"goal": GOAL}


if __name__ == "__main__":
    program("split_deployed", "Split-FedLLM: deployed beside local", options, run)
