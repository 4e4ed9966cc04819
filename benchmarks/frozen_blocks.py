"""What it brings that first blocks which never change compute a text once: FedLLM with and without.

LoRA in the last of MiniLM's six blocks, no dropout, the builtin questions. Two federations that differ
in `training.cache_frozen` alone take turns, round by round, so that a drift of the machine hits both
alike. Seconds, on the wall and of the processor, are those of whole rounds, messages and meters among
them; FLOPs are those of the clients in the ledger. The first round of the one that keeps what
it computes, in which it computes it, counts.

    OMP_NUM_THREADS=1 python benchmarks/frozen_blocks.py
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

from rich.console import Console
from rich.table import Table

from overhead import trillium_round
from speed import Found, in_turn, program
from trillium.config.experiment import experiment
from trillium.experiment.run import Experiment, build

SIDES = {"each time": False, "once": True}


def federation(keeps: bool, num_clients: int, num_examples: int, num_rounds: int) -> Experiment:
    """Return one side."""
    rows = {"name": "builtin", "num_train": num_clients * num_examples, "num_test": 38}
    return build(
        experiment(
            {
                "rounds": num_rounds,
                "framework": "fedllm",
                "model": {"id": "minilm", "dropout": 0.0},
                "data": {"source": rows, "num_clients": num_clients},
                "adapter": {"name": "lora", "r": 8, "alpha": 16, "layers": [5]},
                "training": {"batch_size": 16, "cache_frozen": keeps},
            }
        )
    )


def pair(options: argparse.Namespace) -> Found:
    """Return seconds and FLOPs of the clients of both sides, round by round."""
    shape = options.clients, options.examples, options.rounds
    sides = {name: federation(keeps, *shape) for name, keeps in SIDES.items()}
    walls: dict[str, list[float]] = {name: [] for name in sides}
    cpus: dict[str, list[float]] = {name: [] for name in sides}
    for fed in sides.values():
        fed.config.framework.start(fed.server, fed.fleet)
    for number in range(1, options.rounds + 1):
        for name in in_turn(list(sides), number):
            wall, cpu = time.perf_counter(), time.process_time()
            trillium_round(sides[name], number)
            walls[name].append(time.perf_counter() - wall)
            cpus[name].append(time.process_time() - cpu)
    flops = {
        name: sum(entry.flops or 0.0 for entry in fed.fleet.ledger.entries)
        for name, fed in sides.items()
    }
    return {"seconds": walls, "cpu_seconds": cpus, "flops": flops}


def measure(options: argparse.Namespace) -> tuple[list[Found], Found]:
    """Compare the two in pairs of whole runs."""
    pairs = [pair(options) for _ in range(options.pairs)]
    slow, fast = SIDES

    def ratio(of: Any) -> float:
        return float(statistics.median(of(found, slow) / of(found, fast) for found in pairs))

    found: Found = {
        "flops_ratio": ratio(lambda found, side: found["flops"][side]),
        "seconds_ratio": ratio(lambda found, side: sum(found["seconds"][side])),
        "cpu_seconds_ratio": ratio(lambda found, side: sum(found["cpu_seconds"][side])),
        "seconds_ratio_of_later_rounds": ratio(
            lambda found, side: statistics.median(found["seconds"][side][1:])
        ),
        "pairs": pairs,
    }
    table = Table(
        title=f"MiniLM, LoRA in the last block, {options.rounds} rounds: each time / once"
    )
    table.add_column("Ratio")
    table.add_column("Found", justify="right")
    table.add_column("Goal", justify="right")
    goals = {"flops_ratio": 3.0, "seconds_ratio": 2.5}
    for name in (name for name in found if name != "pairs"):
        table.add_row(name, f"{found[name]:.2f}", f"{goals.get(name, '')}")
    Console(width=110).print(table)
    shape = {"clients": options.clients, "examples": options.examples, "rounds": options.rounds}
    return [found], {"goals": goals, **shape}


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--examples", type=int, default=100, help="of each client")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--pairs", type=int, default=3)


if __name__ == "__main__":
    program("frozen_blocks", __doc__ or "", _add, measure)
