"""Accuracy against simulated time where one client in five is slow by ten times.

Of the runs of `stragglers.yaml` it tells when each arm has got to the best accuracy of the one that
waits for all, less one point, and draws the curves.

    OMP_NUM_THREADS=1 trillium compare benchmarks/stragglers.yaml
    python benchmarks/stragglers.py runs/<folder>
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from measured import write_found
from trillium.report.curves import Curve, Panel, curve, draw
from trillium.report.measures import BY_NAME
from trillium.report.read import Run, number, read_runs
from trillium.report.style import png, quiet_style
from trillium.report.summary import summarise

RESULTS = Path(__file__).resolve().parent / "results"
BELOW = 0.01  # the best accuracy of `waiting`
TIMES = 3.0  # that `buffered` is to be there sooner


def seconds(run: Run, index: int) -> float | None:
    """Return the simulated seconds of a run until a round."""
    found = (line for line in run.evaluations if line["round"] == index)
    return number(next(found, {}).get("simulated_seconds"))


def reached(found: Curve, goal: float) -> float | None:
    """Return when an arm has got to an accuracy, if it has."""
    pairs = zip(found.x, found.y, strict=True)
    return next((at for at, stat in pairs if stat.mean >= goal), None)


def main() -> None:
    """Read, print, write and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="of the comparison")
    parser.add_argument("--out", type=Path, default=RESULTS / "stragglers.json")
    args = parser.parse_args()
    rows = summarise(read_runs(args.folder))
    curves = {
        row.arm: curve(row, lambda line: number(line.get("accuracy")), seconds) for row in rows
    }
    goal = max(stat.mean for stat in curves["waiting"].y) - BELOW
    times = {arm: reached(found, goal) for arm, found in curves.items()}
    waiting = times["waiting"]
    assert waiting is not None
    arms = {}
    for row in rows:
        found, at = curves[row.arm], times[row.arm]
        arms[row.arm] = {
            "best_accuracy": max(stat.mean for stat in found.y),
            "simulated_seconds_to_goal": at,
            "times_sooner_than_waiting": None if at is None else waiting / at,
            "simulated_seconds": found.x[-1],
            "flops_per_client": row.values["flops_per_client"].mean,
            "bytes_per_client": row.values["bytes_per_client"].mean,
            "seeds": [run.seed for run in row.counted],
            "curve": [[at, stat.mean] for at, stat in zip(found.x, found.y, strict=True)],
        }
        there = "never" if at is None else f"after {at:.1f} s, {waiting / at:.1f} times sooner"
        print(f"{row.arm}: {100 * goal:.1f} % {there}")
    write_found(args.out, os.getloadavg()[0], arms, accuracy=goal, goal_times_sooner=TIMES)
    panel = Panel("Accuracy", BY_NAME["accuracy"], seconds, "Simulated time")
    with quiet_style():
        figure = draw(rows, [panel], "s")
        assert figure is not None
        args.out.with_suffix(".png").write_bytes(png(figure))


if __name__ == "__main__":
    main()
