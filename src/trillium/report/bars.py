"""What each arm costs, as bars: bytes by kind of tensor, wall time, memory and client time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter

from trillium.report.measures import BY_NAME
from trillium.report.style import arm_styles, kind_colours, scale_axis, short
from trillium.report.summary import Row, families

_COSTS = ("wall_seconds", "seconds_per_client", "peak_bytes_client")
_DIRECTIONS = ("up", "down")


def bytes_by_kind(row: Row) -> dict[tuple[str, str], float]:
    """Return bytes per client and round by (direction, kind), as a mean over the counted runs."""
    runs = [run.traffic for run in row.counted if run.traffic is not None]
    sums: dict[tuple[str, str], float] = {}
    for traffic in runs:
        for key, size in traffic.kinds.items():
            sums[key] = sums.get(key, 0.0) + size / max(traffic.num_turns, 1) / len(runs)
    return {key: size for key, size in sums.items() if size > 0}


def plot_kinds(rows: Sequence[Row]) -> Figure | None:
    """Bytes up and down per client and round (logarithmic), and the kinds they consist of.

    Two panels, because arms differ by orders of magnitude and a stack has no meaning on a
    logarithmic axis.
    """
    sizes = {row.arm: kinds for row in rows if (kinds := bytes_by_kind(row))}
    if not sizes:
        return None
    colours = kind_colours(kind for kinds in sizes.values() for _, kind in kinds)
    figure = Figure(figsize=(9.4, 1.5 + 0.62 * len(sizes)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    totals: list[float] = []
    ticks: list[float] = []
    names: list[str] = []
    for index, (arm, kinds) in enumerate(sizes.items()):
        for offset, direction in zip((-0.2, 0.2), _DIRECTIONS, strict=True):
            parts = {kind: kinds.get((direction, kind), 0.0) for kind in colours}
            total = sum(parts.values())
            ticks.append(index + offset)
            names.append(f"{short(arm, 30, 1)}  {direction}" if direction == "up" else direction)
            if not total:
                continue
            totals.append(total)
            left.barh(index + offset, total, height=0.36, color="#5B7FA6")
            shown = " " + BY_NAME["bytes_per_client"].show(total, None)
            left.annotate(shown, (total, index + offset), va="center", fontsize=8.5)
            start = 0.0
            for kind, part in parts.items():
                right.barh(index + offset, part / total, left=start, height=0.36,
                           color=colours[kind], edgecolor="white", linewidth=0.5)  # fmt: skip
                start += part / total
    scale_axis(left.xaxis, totals, "B", log=True)
    low, high = left.get_xlim()
    # The shortest bar must still be a bar, and the longest needs room for its number.
    left.set_xlim(low / 3, high * (high / low * 3) ** 0.22)
    left.set_yticks(ticks, names)
    left.set_ylim(len(sizes) - 0.4, -0.6)
    left.set_title("Bytes per client and round")
    right.set_title("Share by kind")
    right.set_xlim(0, 1)
    right.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    for axes in (left, right):
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
    patches = [Patch(color=colour, label=short(kind)) for kind, colour in colours.items()]
    figure.legend(handles=patches, loc="outside right upper")
    return figure


def plot_costs(rows: Sequence[Row]) -> Figure | None:
    """Wall time, client time and a client's peak memory per arm, each from zero."""
    names = [name for name in _COSTS if any(name in row.values for row in rows)]
    if not names:
        return None
    styles = arm_styles(families(rows))
    width = 1.8 + 2.9 * len(names)
    figure = Figure(figsize=(width, 1.25 + 0.4 * len(rows)), layout="constrained")
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        _bars(axes, rows, name, styles)
    panels[0].set_yticks(range(len(rows)), [short(row.arm, 30, 1) for row in rows])
    panels[0].set_ylim(len(rows) - 0.4, -0.6)
    return figure


def _bars(axes: Any, rows: Sequence[Row], name: str, styles: dict[str, dict[str, Any]]) -> None:
    """Draw one cost of every arm, its value beside the bar."""
    measure = BY_NAME[name]
    values = {i: row.values[name] for i, row in enumerate(rows) if name in row.values}
    for index, stat in values.items():
        colour = styles[rows[index].arm]["color"]
        end = stat.mean + (stat.sd or 0.0)
        axes.barh(index, stat.mean, height=0.6, color=colour, xerr=stat.sd or None,
                  error_kw={"ecolor": "#444444", "elinewidth": 1, "capsize": 2})  # fmt: skip
        axes.annotate("  " + measure.show(stat.mean, None), (end, index), va="center", fontsize=8.5)
    for index in set(range(len(rows))) - set(values):
        axes.annotate("  –", (0, index), va="center", fontsize=8.5, color="#777777")
    ends = [stat.mean + (stat.sd or 0.0) for stat in values.values()]
    # Room at the right for the number beside the longest bar.
    axes.set_xlim(0, (max(ends) or 1.0) * 1.42)
    scale_axis(axes.xaxis, ends, "B" if "bytes" in name else "s", log=False)
    axes.set_title(measure.title)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
