"""What benchmarks of speed share: two sides that take turns, their ratio, the table, the results."""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from measured import write_found
from trillium.quiet import quiet

RESULTS = Path(__file__).parent / "results"
RATIOS = {
    "ratio": "Ratio",
    "ratio_min": "Lowest",
    "ratio_max": "Highest",
    "ratio_of_fastest": "Fastest",
}
Found = dict[str, Any]


def in_turn(sides: Sequence[str], number: int) -> Iterator[str]:
    """Yield the sides of a pair; which one begins alternates, so that a drift hits both alike."""
    yield from sides if number % 2 else reversed(sides)


def compared(speeds: Mapping[str, Sequence[float]]) -> Found:
    """Return medians and ratios of two sides, the second by the first.

    Args:
        speeds: tokens per second of either, pair by pair, the plain side first.
    """
    plain, ours = speeds.values()
    # Neighbours in time see the same machine.
    ratios = [b / a for a, b in zip(plain, ours, strict=True)]
    return {
        "tokens_per_second": {side: statistics.median(found) for side, found in speeds.items()},
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        # Other programs can only take time, so the fastest of each is the least disturbed one.
        "ratio_of_fastest": max(ours) / max(plain),
        "speeds": {side: list(found) for side, found in speeds.items()},
    }


def show(title: str, lines: Sequence[tuple[str, Found]], goal: float | None = None) -> None:
    """Print a table with a line for each label and what was compared there."""
    caption = "tokens per second, medians" + (f"; the goal for the ratio is {goal}" if goal else "")
    table = Table(title=f"{title}, {torch.get_num_threads()} thread(s) each", caption=caption)
    sides = list(lines[0][1]["tokens_per_second"])
    for name in ("Case", *sides, *RATIOS.values()):
        table.add_column(name, justify="left" if name == "Case" else "right")
    for label, found in lines:
        speeds = [f"{found['tokens_per_second'][side]:.0f}" for side in sides]
        table.add_row(label, *speeds, *(f"{found[key]:.3f}" for key in RATIOS))
    Console(width=110).print(table)


def program(
    name: str,
    description: str,
    add: Callable[[argparse.ArgumentParser], None],
    measure: Callable[[argparse.Namespace], tuple[list[Found], Found]],
) -> None:
    """Be a benchmark: measure, and write `results/<name>.json`.

    Args:
        add: adds the options beside `--out`.
        measure: returns what was found, and what else is to stand there; prints its table.
    """
    parser = argparse.ArgumentParser(description=description)
    add(parser)
    parser.add_argument("--out", type=Path, default=RESULTS / f"{name}.json")
    options = parser.parse_args()
    quiet()
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))  # of started processes
    load_before = os.getloadavg()[0]
    found, told = measure(options)
    write_found(options.out, load_before, found, **told)
