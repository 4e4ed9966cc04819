"""Tokens per second on one GPU: a plain PyTorch + PEFT loop, the local engine, and Ray's workers.

FedLLM with LoRA, MiniLM and SmolLM2-135M, in float32 and bfloat16. The sides take turns, round by
round. In float32 the local engine must end with the weights of the plain loop, or the script fails. The
peak of PyTorch's allocator in the local engine's rounds stands beside what was planned for a client.
Without a GPU it runs on the CPU, where the allocator has no peak.

    python benchmarks/gpu.py                                  # under eight minutes
    python benchmarks/gpu.py --models minilm --clients 4 --examples 16 --repetitions 1
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from functools import partial

import torch
from rich.console import Console
from rich.table import Table

from overhead import (
    TOLERANCE,
    State,
    configuration,
    largest_difference,
    plain_model,
    plain_round,
    planned_batches,
    timed,
    trillium_round,
)
from ray_workers import sides, tokens
from speed import Found, compared, in_turn, program
from trillium.config.experiment import experiment, merge
from trillium.models.slots import values
from trillium.plan.result import plan_of_run
from trillium.rng import derive_seed

SIZES = {"local": 0, "two_workers": 2, "four_workers": 4}
MODELS, DTYPES = ("minilm", "smollm2"), ("float32", "bfloat16")


def measure(model: str, dtype: str, chosen: argparse.Namespace) -> Found:
    """Run all sides by turns, a warm-up round first, and return what was measured."""
    tree = configuration(chosen.clients, chosen.examples, chosen.repetitions + 1).tree()
    config = experiment(merge(tree, {"model": {"id": model, "dtype": dtype}}))
    names = ["plain", *SIZES]
    speeds: dict[str, list[float]] = {name: [] for name in names}
    with ExitStack() as stack:
        built = sides(stack, config, SIZES, {"name": "ray", "cpus": chosen.cpus})
        local = built["local"]
        device, pad = local.model.device, local.model.tokenizer.pad_token_id
        plain, ends = plain_model(local), list[State]()
        num_tokens, peak, difference = tokens(local), 0, 0.0
        for number in range(1, chosen.repetitions + 2):
            start, rounds = values(local.server.state), planned_batches(local, number)
            seeds = {name: derive_seed(config.seed, name, number, 0) for name in rounds}
            work = {name: partial(trillium_round, built[name], number) for name in SIZES}
            alone = partial(plain_round, plain, start, rounds, seeds, pad)
            for name in in_turn(names, number):
                if device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats(device)
                task = work.get(name) or (lambda: ends.append(alone()))  # noqa: B023
                speeds[name].append(num_tokens / timed(task, device).wall)
                if name == "local" and device.type == "cuda":
                    peak = max(peak, torch.cuda.max_memory_allocated(device))
            difference = max(difference, largest_difference(ends[-1], values(local.server.state)))
            if dtype == "float32" and not difference <= TOLERANCE:
                raise SystemExit(
                    f"the weights differ by {difference:.2e}: this is not the same work"
                )
        planned = plan_of_run(config, local.server, local.clients)
    after = {name: found[1:] for name, found in speeds.items()}
    beside = {name: compared({"plain": after["plain"], name: after[name]}) for name in SIZES}
    return {
        **{"model": model, "dtype": dtype, "device": str(device), "tokens_per_round": num_tokens},
        "sides": beside,
        "largest_weight_difference": difference,
        "planned_peak_bytes": planned["total"]["peak_bytes"],
        "allocator_peak_bytes": peak or None,
    }


def show(found: list[Found]) -> None:
    """Print tokens per second, and memory."""
    table = Table(
        title="Tokens per second, medians", caption="in brackets: by the plain loop's, in pairs"
    )
    for title in ("Model", "Numbers", "plain", *SIZES, "planned MB", "allocator MB"):
        table.add_column(title, justify="right")
    for line in found:
        plain = line["sides"]["local"]["tokens_per_second"]["plain"]
        cells = [
            f"{side['tokens_per_second'][name]:.0f} ({side['ratio']:.2f})"
            for name, side in line["sides"].items()
        ]
        peaks = [line["planned_peak_bytes"], line["allocator_peak_bytes"]]
        memory = ["–" if peak is None else f"{peak / 1e6:.0f}" for peak in peaks]
        table.add_row(line["model"], line["dtype"], f"{plain:.0f}", *cells, *memory)
    Console(width=130).print(table)


def options(parser: argparse.ArgumentParser) -> None:
    """Add what can be chosen."""
    add = parser.add_argument
    add("--models", nargs="+", choices=MODELS, default=[*MODELS])
    add("--dtypes", nargs="+", choices=DTYPES, default=[*DTYPES])
    add("--clients", type=int, default=8)
    add("--examples", type=int, default=128, help="of each client")
    add("--repetitions", type=int, default=3)
    add("--cpus", type=int, default=1, help="threads of a worker")


def run(chosen: argparse.Namespace) -> tuple[list[Found], Found]:
    """Measure each model in each format."""
    found = [measure(model, dtype, chosen) for model in chosen.models for dtype in chosen.dtypes]
    show(found)
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return found, {
        "num_clients": chosen.clients,
        "num_examples_per_client": chosen.examples,
        "gpu": name,
    }


if __name__ == "__main__":
    program("gpu", "Tokens per second on one GPU", options, run)
