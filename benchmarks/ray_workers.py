"""What a second worker of Ray's brings, and what the first one costs beside the local engine.

The same federation three times: in this process, with its clients in one worker, and in two. They take
turns, round by round, and must end with the same weights, bit for bit, or the script fails. Evaluation
plays no part. Each process computes with one thread, so two workers need two idle cores.

    OMP_NUM_THREADS=1 python benchmarks/ray_workers.py
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch

from overhead import configuration, trillium_round
from speed import Found, compared, in_turn, program, show
from trillium.config.experiment import ExperimentConfig, experiment, merge
from trillium.engines.simulation import simulation
from trillium.experiment.run import Experiment, build
from trillium.rng import scoped_rng

SIDES = {"local": 0, "one_worker": 1, "two_workers": 2}
FRAMEWORKS: dict[str, dict[str, Any]] = {
    "fedllm": {},
    "kd": {"framework": {"name": "kd"}, "data": {"public_size": 64}},
    "split": {"framework": {"name": "split", "cut": 3}},
}


def federation(framework: str, chosen: argparse.Namespace) -> ExperimentConfig:
    """Return the experiment of all three sides."""
    tree = configuration(chosen.clients, chosen.examples, chosen.repetitions + 1).tree()
    del tree["framework"]
    base = {"framework": "fedllm", "evaluation": {"every": 1000}}
    return experiment(merge(tree, {**base, **FRAMEWORKS[framework]}))


def sides(
    stack: ExitStack, config: ExperimentConfig, sizes: Mapping[str, int], ray: object = "ray"
) -> dict[str, Experiment]:
    """Return the experiment of each side, begun; so many workers have its clients, or this process."""
    found = {}
    # One Ray for all; idle workers take no time.
    stack.enter_context(simulation(ray).opened(sum(sizes.values()), [config]))
    for side, size in sizes.items():
        engine = simulation(ray if size else "local")
        _, host = stack.enter_context(engine.opened(max(size, 1), [config]))
        found[side] = build(config, engine=stack.enter_context(host()))
        found[side].config.framework.start(found[side].server, found[side].fleet)
    return found


def measure(framework: str, chosen: argparse.Namespace) -> list[Found]:
    """Run the three by turns, a warm-up round first, and return what was measured."""
    config = federation(framework, chosen)
    speeds: dict[str, list[float]] = {side: [] for side in SIDES}
    with ExitStack() as stack:
        built = sides(stack, config, SIDES)
        num_tokens = tokens(built["local"])
        for number in range(1, chosen.repetitions + 2):
            for side in in_turn([*SIDES], number):
                start = time.perf_counter()
                with scoped_rng(config.seed, "server", number):  # of the server's dropout
                    trillium_round(built[side], number)
                speeds[side].append(num_tokens / (time.perf_counter() - start))
        local, *others = (found.server.state for found in built.values())
        for state in others:
            if any(not torch.equal(local[name], state[name]) for name in local):
                raise SystemExit(f"{framework}: the weights differ: this is not the same work")
    after = {side: found[1:] for side, found in speeds.items()}
    told = {"framework": framework, "tokens_per_round": num_tokens}
    pairs = (("local", "one_worker"), ("one_worker", "two_workers"))
    return [{**told, **compared({side: after[side] for side in pair})} for pair in pairs]


def tokens(built: Experiment) -> int:
    """Return how many tokens the clients have."""
    return sum(example.num_tokens for client in built.clients for example in client.examples)


def options(parser: argparse.ArgumentParser) -> None:
    """Add what can be chosen."""
    add = parser.add_argument
    add("--frameworks", nargs="+", choices=FRAMEWORKS, default=[*FRAMEWORKS])
    add("--clients", type=int, default=10)
    add("--examples", type=int, default=48, help="of each client")
    add("--repetitions", type=int, default=5)


def run(chosen: argparse.Namespace) -> tuple[list[Found], Found]:
    """Measure each framework."""
    found = [line for framework in chosen.frameworks for line in measure(framework, chosen)]
    for number, title in enumerate(("One worker beside none", "Two workers beside one")):
        show(title, [(line["framework"], line) for line in found[number::2]])
    told = {"num_clients": chosen.clients, "num_examples_per_client": chosen.examples}
    return found, {**told, "num_cores": os.cpu_count()}


if __name__ == "__main__":
    program("ray_workers", "Workers of Ray's beside the local engine", options, run)
