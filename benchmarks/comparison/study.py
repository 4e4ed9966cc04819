"""The study: three frameworks at a default point, and along one axis at a time.

    python benchmarks/prepare.py comparison
    python benchmarks/comparison/study.py run --workers 2            # all points, some three hours
    python benchmarks/comparison/study.py run even skew_0.1          # some of them
    python benchmarks/comparison/study.py keep                       # results/comparison.json
    python benchmarks/comparison/figures.py                          # tables and pictures from it

Each point is a comparison, `trillium compare study.yaml` with some settings, below `runs/comparison`;
what has finished there is not run again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trillium.files import write_atomic
from trillium.report.costs import bytes_per_client, flops_per_client, per_client
from trillium.report.read import Run, read_runs
from trillium.report.summary import summarise
from trillium.report.times import Clock, clock_of

HERE = Path(__file__).resolve().parent
KEPT = HERE.parent / "results" / "comparison.json"
RUNS = Path("runs/comparison")
BASELINES = ("zero_shot", "local_only", "centralised")
KD = ("kd", "kd_frugal")
DEFAULT_SEEDS, SEEDS = "0,1,2", "0,1"


@dataclass(frozen=True)
class Point:
    """One place of the study: what is set there, and the arms that differ from the default point's."""

    settings: tuple[str, ...] = ()
    arms: tuple[str, ...] = ()


def rows(count: int) -> str:
    """Return the setting of so many training rows, the public ones among them."""
    return f"data.source.train=runs/prepared/comparison/train_{count}.csv"


def depth(blocks: list[int]) -> tuple[str, ...]:
    """Return the settings of adapters in these blocks, with the model cut before the first."""
    cuts = (f"{arm}.framework.cut={max(blocks[0], 1)}" for arm in ("split", "split_once"))
    return (f"adapter.layers={blocks}", *cuts)


SKEWED = "data.partition={name: dirichlet, alpha: 0.1}"
POINTS = {
    "default": Point(),
    "even": Point(("data.partition=iid",)),
    "skew_0.1": Point((SKEWED,)),
    "six_classes": Point(("data.source.label=topic",)),
    "six_classes_skew_0.1": Point(("data.source.label=topic", SKEWED)),
    "clients_5": Point((rows(900), "data.num_clients=5")),
    "clients_20": Point((rows(2400), "data.num_clients=20")),
    "clients_100": Point((rows(10003), "data.num_clients=100", "fleet.clients_per_round=10")),
    "rows_20": Point((rows(600),)),
    "rows_500": Point((rows(5400),)),
    "blocks_3": Point(depth([3, 4, 5])),
    "blocks_6": Point(depth([0, 1, 2, 3, 4, 5])),
    "rank_2": Point(("adapter.r=2", "adapter.alpha=4")),
    "rank_32": Point(("adapter.r=32", "adapter.alpha=64")),
    "public_100": Point((rows(1100), "data.public_size=100"), (*BASELINES, *KD)),
    "public_1000": Point((rows(2000), "data.public_size=1000"), (*BASELINES, *KD)),
    "public_other": Point(
        (
            "data.public={name: file, path: runs/prepared/comparison/other.csv}",
            "data.public_size=250",
            "data.set_aside=400",
        ),
        KD,
    ),
    "own_models": Point(
        (
            "tiers.small={clients: ['client-[0-4]'], model: {id: runs/prepared/comparison/minilm_3}, "
            "adapter: {layers: [2]}}",
        ),
        KD,
    ),
    "dropouts": Point(
        ("fleet.failure_rate=0.3", "fleet.min_replies=1"),
        ("fedllm", "fedllm_frugal", *KD, "split", "split_once"),
    ),
    "secure_sums": Point(("sums=masked",), ("fedllm", "kd")),
}
AXES = {
    "label skew": {"even": "even", "Dirichlet 0.5": "default", "Dirichlet 0.1": "skew_0.1"},
    "classes": {"77": "default", "6": "six_classes"},
    "classes, Dirichlet 0.1": {"77": "skew_0.1", "6": "six_classes_skew_0.1"},
    "clients": {"5": "clients_5", "10": "default", "20": "clients_20", "10 of 100": "clients_100"},
    "rows a client": {"20": "rows_20", "100": "default", "500": "rows_500"},
    "blocks that train": {"1": "default", "3": "blocks_3", "6": "blocks_6"},
    "rank": {"2": "rank_2", "8": "default", "32": "rank_32"},
    "public texts": {
        "100": "public_100",
        "400": "default",
        "1000": "public_1000",
        "250 of another domain": "public_other",
    },
    "models of clients": {"one": "default", "two": "own_models"},
    "replies lost": {"none": "default", "30 %": "dropouts"},
    "sums": {"plain": "default", "masked": "secure_sums"},
}
"""Values of each axis, and the points they stand for."""


def run(chosen: argparse.Namespace) -> None:
    """Run the comparison of each point that was named, or of all."""
    for name in chosen.points or POINTS:
        point = POINTS[name]
        only = chosen.only or ",".join(point.arms)
        command = [
            *(str(Path(sys.executable).with_name("trillium")), "compare", str(HERE / "study.yaml")),
            *point.settings,
            *(["--only", only] if only else []),
            *("--seeds", chosen.seeds or (DEFAULT_SEEDS if name == "default" else SEEDS)),
            *("--workers", str(chosen.workers), "--out", str(RUNS / name), "--quiet"),
        ]
        print(name, flush=True)
        if subprocess.run(command).returncode:
            print(f"{name}: an arm has failed", flush=True)


def keep(chosen: argparse.Namespace) -> None:
    """Write what is finished in short."""
    found: dict[tuple[str, str, int], dict[str, Any]] = {}
    if KEPT.is_file():
        lines = json.loads(KEPT.read_text(encoding="utf-8"))["runs"]
        found = {(line["point"], line["arm"], line["seed"]): line for line in lines}
    for name in chosen.points or POINTS:
        for folder in sorted((RUNS / name).glob("*/")):
            for entry in entries(name, folder):
                found[name, entry["arm"], entry["seed"]] = entry
    names = [*POINTS]
    ordered = sorted(found, key=lambda key: (names.index(key[0]), key[1:]))
    lines = [json.dumps(found[key]) for key in ordered]
    write_atomic(KEPT, '{"runs": [\n' + ",\n".join(lines) + "\n]}\n")
    print(f"{len(lines)} runs in {KEPT}")


def entries(point: str, folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the finished runs of a comparison; bytes, FLOPs and seconds are a client's, so far."""
    finished = [run for run in read_runs(folder) if run.state == "finished"]
    clock = clock_of(summarise(finished))
    for found in finished:
        assert found.traffic is not None
        yield {
            "point": point,
            "arm": found.arm,
            "seed": found.seed,
            "commit": found.env.get("git_sha"),
            "bytes_once": per_client(found.traffic.bytes_once, found),
            "peak_bytes": found.traffic.peak_bytes,
            "curve": [measured(found, clock, line) for line in found.evaluations],
        }


def measured(found: Run, clock: Clock, line: dict[str, Any]) -> dict[str, Any]:
    """Return an evaluation of a run, and what it had spent by then."""
    index = line["round"]
    return {
        "round": index,
        "accuracy": line["accuracy"],
        "loss": line["loss"],
        "bytes": bytes_per_client(found, index),
        "flops": flops_per_client(found, index),
        "seconds": {place: clock.spent(place)(found, index) for place in clock.places},
    }


def main() -> None:
    """Do what is asked for."""
    parser = argparse.ArgumentParser(description="The study of benchmarks/comparison")
    parser.add_argument("verb", choices=("run", "keep"))
    parser.add_argument("points", nargs="*", choices=[*POINTS, []], help="all by default")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--only", help="arms, in place of those of the point")
    parser.add_argument("--seeds", help="in place of 0,1, and 0,1,2 at the default point")
    chosen = parser.parse_args()
    {"run": run, "keep": keep}[chosen.verb](chosen)


if __name__ == "__main__":
    main()
