"""The curves of the page, as plain values for the script that draws them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from trillium.report.costs import bytes_per_client, flops_per_client
from trillium.report.curves import Curve, Spent, curve, plotted_measures, spends_nothing
from trillium.report.human import percent
from trillium.report.interval import interval
from trillium.report.measures import BY_NAME
from trillium.report.read import Run, number
from trillium.report.style import arm_styles
from trillium.report.summary import Row, Stat, families

_DASHES = {"-": [], "--": [8, 4], "-.": [8, 3, 2, 3], ":": [2, 3]}
TRAINING = ("train_loss", "distil_loss")
_TITLES = {"train_loss": "Training loss", "distil_loss": "Loss of distillation"}


def charts(rows: Sequence[Row], places: Mapping[str, Spent] | None = None) -> dict[str, Any]:
    """Return axes, arms and curves; empty without a curve.

    Args:
        places: seconds until a round at some places, by the name of the place.
    """
    axes: dict[str, tuple[str, str, Spent]] = {
        "rounds": ("Rounds", "", lambda run, index: float(index)),
        "bytes": ("Bytes", "B", bytes_per_client),
        "flops": ("Compute", "FLOPs", flops_per_client),
        "memory": ("Memory", "B", _memory),
    }
    for name, spent in (places or {}).items():
        axes[f"time {name}"] = (f"Time, {name}", "s", spent)
    measures = [
        (m.name, m.title, m.show is percent, m.name == "perplexity") for m in plotted_measures(rows)
    ]
    for name in TRAINING:
        if any(run.last(name) is not None for row in rows for run in row.counted):
            measures.append((name, _TITLES[name], False, False))
    found = {
        key: {name: [_series(row, name, key, unit, spent) for row in rows] for name, *_ in measures}
        for key, (_, unit, spent) in axes.items()
    }
    used = [
        key
        for key in axes
        if any(series.get("x") for lines in found[key].values() for series in lines)
    ]
    if not used or not measures:
        return {}
    styles = arm_styles(families(rows))
    return {
        "axes": [{"key": key, "title": axes[key][0], "unit": axes[key][1]} for key in used],
        "first": "bytes" if "bytes" in used else used[0],
        "measures": [
            {"key": name, "title": title, "percent": share, "wide": wide}
            for name, title, share, wide in measures
        ],
        "arms": [{"label": row.arm, "dash": _DASHES[styles[row.arm]["linestyle"]]} for row in rows],
        "curves": {key: found[key] for key in used},
    }


def _series(row: Row, measure: str, key: str, unit: str, spent: Spent) -> dict[str, Any]:
    """Return the points of an arm, or its level if it has no place along the axis."""
    made = curve(row, lambda line: number(line.get(measure)), spent)
    if key == "memory":  # what a client needs at once is not spent bit by bit
        made = Curve(made.rounds[-1:], made.x[-1:], made.y[-1:])
    points = [
        (at, x, stat)
        for at, x, stat in zip(made.rounds, made.x, made.y, strict=True)
        # A logarithmic axis has no zero, so what was before the first byte is left out there.
        if (x > 0 or not unit) and math.isfinite(stat.mean)
    ]
    if len(points) > 1 or (unit and points):
        return {
            "rounds": [at for at, _, _ in points],
            "x": [x for _, x, _ in points],
            "y": [stat.mean for _, _, stat in points],
            "sd": [_deviation(stat) for _, _, stat in points],
            "interval": _interval(row, measure),
        }
    stat = row.values.get(measure) if measure in BY_NAME else None
    if stat is None or not math.isfinite(stat.mean) or not spends_nothing(row, unit):
        return {}
    return {"level": stat.mean, "interval": _interval(row, measure)}


def _deviation(stat: Stat) -> float:
    return stat.sd if stat.sd is not None and math.isfinite(stat.sd) else 0.0


def _interval(row: Row, measure: str) -> list[float] | None:
    found = interval(row, measure)
    return None if found is None else [found.low, found.high]


def _memory(run: Run, index: int) -> float | None:
    peak = run.traffic.peak_bytes if run.traffic else None
    return None if peak is None else float(peak)
