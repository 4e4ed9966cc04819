"""What a round of aggregation costs the server: seconds and memory of every rule.

The shape is that of a model of about a billion parameters: 16 layers of width 2048 with LoRA on the
query (2048 x 2048) and value (512 x 2048) projections, and a head of 77 classes. There is no base
model: aggregation does not look at it. Rules that mix ranks get clients of rank 8, 16, 32 and 64 in
turn, all others rank 32. Contributions are drawn one by one from a seed, as a server receives them.
Each measurement is a process of its own.

    OMP_NUM_THREADS=1 python benchmarks/aggregation.py
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shlex
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from trillium.component import known, resolve
from trillium.experiment.environment import environment
from trillium.federation.means import Contribution
from trillium.files import write_atomic
from trillium.frameworks.fedllm.aggregators import Aggregator
from trillium.models.factors import Factors
from trillium.wire.kinds import Tensors

RESULTS = Path(__file__).parent / "results"
WIDTH, VALUE, NUM_LAYERS, NUM_CLASSES = 2048, 512, 16, 77
RANK, RANKS = 32, (8, 16, 32, 64)
NUM_CLIENTS = (10, 100)
VARIANTS: dict[str, dict[str, Any]] = {
    "svd, fold_rest": {"name": "svd", "fold_rest": True},
    "fedex, rank 32": {"name": "fedex", "rank": 32},
}


@dataclass(frozen=True)
class Job:
    """One measurement.

    Attributes:
        label: of the row.
        aggregator: the rule and its options.
        num_clients: in the round.
        num_layers: of the model.
    """

    label: str
    aggregator: dict[str, Any]
    num_clients: int
    num_layers: int


@dataclass(frozen=True)
class Cost:
    """What a job took.

    Attributes:
        label: of the row.
        num_clients: in the round.
        mixed: whether the clients' ranks differ.
        seconds: of the processor, for taking the contributions in and for the result.
        peak_bytes: most memory above that of the process before it.
        sent_bytes: all contributions together.
        result_bytes: adapters, heads and folds of the result.
    """

    label: str
    num_clients: int
    mixed: bool
    seconds: float
    peak_bytes: int
    sent_bytes: int
    result_bytes: int


@dataclass
class Shape:
    """Names and shapes of what is aggregated."""

    num_layers: int
    layers: list[tuple[Factors, int]] = field(init=False)

    def __post_init__(self) -> None:
        sizes = [("query", WIDTH), ("value", VALUE)]
        names = [(f"layers.{i}.{p}", out) for i in range(self.num_layers) for p, out in sizes]
        self.layers = [
            (Factors(n, f"{n}.lora_A", f"{n}.lora_B", scale=2.0, transposed=False), out)
            for n, out in names
        ]

    def draw(self, seed: int, rank: int) -> Tensors:
        """Return what a client of a rank sends."""
        source = torch.Generator().manual_seed(seed)
        tensors = {"head": torch.randn(NUM_CLASSES, WIDTH, generator=source)}
        for layer, out in self.layers:
            tensors[layer.a] = torch.randn(rank, WIDTH, generator=source)
            tensors[layer.b] = torch.randn(out, rank, generator=source)
        return tensors


def measure(job: Job) -> Cost:
    """Aggregate one round in this process."""
    aggregator = resolve(Aggregator, job.aggregator)
    shape = Shape(job.num_layers)
    ranks = RANKS if aggregator.mixes_ranks else (RANK,)
    like = shape.draw(0, max(ranks))
    factors = [layer for layer, _ in shape.layers]
    _warm_up()
    idle = _reset_peak()
    sent_bytes, seconds = 0, 0.0
    reduction = aggregator.begin(like, factors)
    for index in range(job.num_clients):
        tensors = shape.draw(1 + index, ranks[index % len(ranks)])
        sent_bytes += sum(t.nbytes for t in tensors.values())
        start = time.process_time()
        reduction.add(Contribution(f"client-{index:03}", 1.0 + index % 7, tensors))
        seconds += time.process_time() - start
    start = time.process_time()
    found = reduction.result()
    seconds += time.process_time() - start
    folds = [t for fold in found.folds.values() for t in (fold.left, fold.right)]
    return Cost(
        job.label,
        job.num_clients,
        len(ranks) > 1,
        seconds,
        _status("VmHWM") - idle,
        sent_bytes,
        sum(t.nbytes for t in [*found.tensors.values(), *folds]),
    )


def _warm_up() -> None:
    """Load what linear algebra loads on first use, so that it does not count."""
    square = torch.randn(64, 64, dtype=torch.float64)
    torch.linalg.svd(torch.linalg.qr(square @ square)[0])


def _reset_peak() -> int:
    """Let the peak of this process begin anew, and return what it uses now (Linux)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _status("VmRSS")


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def jobs(rules: list[str], num_clients: list[int], scale: float) -> list[Job]:
    """Return what is to be measured."""
    chosen = {name: {"name": name} for name in known(Aggregator)} | VARIANTS
    num_layers = max(1, round(NUM_LAYERS * scale))
    return [
        Job(label, chosen[label], num, num_layers)
        for label in (rules or sorted(chosen, key=lambda label: (label != "mean", label)))
        for num in num_clients
    ]


def markdown(costs: list[Cost], num_layers: int, env: dict[str, Any]) -> str:
    """Return the page of results."""
    lines = [
        "# Aggregation",
        "",
        "What a round costs the server, by `benchmarks/aggregation.py`: LoRA on the query and value "
        f"projections of {num_layers} layers of width {WIDTH}, and a head of {NUM_CLASSES} classes, "
        "in float32. Ranks are 8, 16, 32 and 64 in turn for rules that mix them, "
        f"{RANK} for the others. A model of a billion parameters has {NUM_LAYERS} such layers: "
        "seconds, and the size of contributions and results, grow in proportion.",
        "",
        "| Rule | Clients | Ranks | Seconds | Peak memory | Contributions | Result |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for cost in costs:
        ranks = "8–64" if cost.mixed else str(RANK)
        sizes = [
            f"{n / 1e6:,.0f} MB" for n in (cost.peak_bytes, cost.sent_bytes, cost.result_bytes)
        ]
        cells = [cost.label, str(cost.num_clients), ranks, f"{cost.seconds:.1f}", *sizes]
        lines.append(f"| {' | '.join(cells)} |")
    versions = ", ".join(f"{name} {found}" for name, found in env["versions"].items())
    lines += [
        "",
        "- Seconds: of the processor, for taking the contributions in and for the result; drawing them "
        "is not in it.",
        "- Peak memory: above that of the process with what the server holds; a rule that does not "
        "stream keeps the contributions, which are in it.",
        "- Contributions: what all clients sent together. Result: adapters, head, and what goes into "
        "base weights, as factors.",
        "",
        f"Made with `{shlex.join(env['argv'])}` on {env['cpus']} CPUs, "
        f"{env['threads']} thread(s), Python {env['python']}, {versions}; on top of commit "
        f"{str(env['git_sha'])[:10]}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print, and write the page."""
    parser = argparse.ArgumentParser(description="What a round of aggregation costs the server.")
    parser.add_argument("--rules", nargs="+", default=[], help="rows to measure; all by default")
    parser.add_argument("--clients", nargs="+", type=int, default=list(NUM_CLIENTS))
    parser.add_argument("--scale", type=float, default=1.0, help="share of the layers")
    parser.add_argument("--out", type=Path, default=RESULTS / "aggregation.md")
    options = parser.parse_args()
    console = Console()
    todo = jobs(options.rules, options.clients, options.scale)
    costs = []
    # A process forgets what the one before it allocated; a fork of this one has imported everything.
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        for cost in pool.imap(measure, todo):
            costs.append(cost)
            console.print(
                f"{cost.label:20} {cost.num_clients:4} clients {cost.seconds:8.1f} s "
                f"{cost.peak_bytes / 1e6:8,.0f} MB"
            )
    env = environment("cpu", sys.argv)
    env["threads"] = os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())
    write_atomic(options.out, markdown(costs, todo[0].num_layers, env))


if __name__ == "__main__":
    main()
