"""Quality against rounds, against bytes and against client compute: a mean line, a band of ± sd."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from trillium.report import human
from trillium.report.costs import bytes_per_client, flops_per_client
from trillium.report.measure import MAIN, Measure
from trillium.report.measures import BY_NAME
from trillium.report.read import Run, number
from trillium.report.style import arm_styles, scale_axis, short
from trillium.report.summary import Row, Stat, families

_MARKED_POINTS = 25


Spent = Callable[[Run, int], float | None]
"""Gives what a run had spent until a round; `None` where that is not known."""


@dataclass(frozen=True)
class Panel:
    """One pair of axes: a measure against what was spent, with the label of that."""

    title: str
    measure: Measure
    spent: Spent
    label: str


@dataclass(frozen=True)
class Curve:
    """A measure of an arm at every evaluation that all its counted runs share.

    `x` is the mean over the seeds of what had been spent by then.
    """

    rounds: list[int]
    x: list[float]
    y: list[Stat]


def plotted_measures(rows: Sequence[Row]) -> list[Measure]:
    """Return what the curves are of: the measure of the task, or else the loss."""
    with_it = {
        "exact_match": ("exact_match", "perplexity"),
        "reward_accuracy": ("reward_accuracy", "reward_margin"),
    }
    for name in (*MAIN, "loss"):
        names = with_it.get(name, (name,))
        found = [BY_NAME[name] for name in names if any(name in row.values for row in rows)]
        if found:
            return found
    return []


def curve(row: Row, of: Callable[[dict[str, Any]], float | None], spent: Spent) -> Curve:
    """Return an arm's values of an evaluation line against what had been spent at that round."""
    series = []
    for run in row.counted:
        points: dict[int, tuple[float, float]] = {}
        for line in run.evaluations:
            value, at = of(line), spent(run, line["round"])
            if value is not None and at is not None:
                points[line["round"]] = (at, value)
        if points:
            series.append(points)
    shared = sorted(set.intersection(*map(set, series))) if series else []
    found = Curve(shared, [], [])
    for index in shared:
        found.x.append(sum(points[index][0] for points in series) / len(series))
        stat = Stat.of(points[index][1] for points in series)
        assert stat is not None
        found.y.append(stat)
    return found


def plot_rounds(rows: Sequence[Row]) -> Figure | None:
    """Quality against rounds; dashed, the mean over the clients where they have measured, too."""
    return draw(rows, _panels(rows, lambda run, index: float(index), "Round"), None)


def plot_bytes(rows: Sequence[Row]) -> Figure | None:
    """Quality against bytes up and down per client, on a logarithmic axis."""
    label = "Bytes up and down per client, so far"
    return draw(rows, _panels(rows, bytes_per_client, label), "B")


def plot_flops(rows: Sequence[Row]) -> Figure | None:
    """Quality against the FLOPs per client, on a logarithmic axis."""
    label = "Client compute, so far (mean over clients)"
    return draw(rows, _panels(rows, flops_per_client, label), "FLOPs")


def _panels(rows: Sequence[Row], spent: Spent, label: str) -> list[Panel]:
    return [Panel(measure.title, measure, spent, label) for measure in plotted_measures(rows)]


def draw(rows: Sequence[Row], panels: Sequence[Panel], unit: str | None) -> Figure | None:
    """Draw panels side by side; arms that spend nothing on an axis become level lines."""
    curves = [
        {row.arm: curve(row, _metric(panel.measure.name), panel.spent) for row in rows}
        for panel in panels
    ]
    most = max((max(c.x, default=0) for found in curves for c in found.values()), default=0)
    if most <= 0:  # nobody spent anything: there is no axis to draw
        return None
    styles = arm_styles(families(rows))
    width = 5.6 if len(panels) < 3 else 4.2
    figure = Figure(figsize=(width * len(panels) + 2.6, 4.3), layout="constrained")
    handles: dict[str, Line2D] = {}
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, panel, own in zip(all_axes, panels, curves, strict=True):
        spans: list[float] = []
        measure = panel.measure
        for row in rows:
            found, style = own[row.arm], styles[row.arm]
            # A logarithmic axis has no zero, so what was before the first byte is left out there.
            pairs = zip(found.x, found.y, strict=True)
            points = [(x, stat) for x, stat in pairs if x > 0 or unit is None]
            moves = len(points) > 1 or (unit is not None and bool(points))
            if moves:
                spans += [x for x, _ in points]
                handles[row.arm] = _line(axes, points, style, short(row.arm))
            elif measure.name in row.values and spends_nothing(row, unit):
                line = _level(axes, row.values[measure.name], style, short(row.arm))
                handles.setdefault(row.arm, line)
            if unit is None:
                _clients_line(axes, row, measure, style)
        _finish(axes, panel, unit, spans)
    _legend(figure, [handles[row.arm] for row in rows if row.arm in handles], figure.axes)
    return figure


def spends_nothing(row: Row, unit: str | None) -> bool:
    """Whether it is known that an arm has no place along the axis; a lost ledger is not nothing."""
    traffic = [run.traffic for run in row.counted]
    if unit == "B":
        return all(known is not None and known.compression is None for known in traffic)
    if unit == "FLOPs":
        return all(known is not None and not known.num_turns for known in traffic)
    return True


def _metric(name: str) -> Callable[[dict[str, Any]], float | None]:
    return lambda line: number(line.get(name))


def _clients_mean(name: str) -> Callable[[dict[str, Any]], float | None]:
    def mean(line: dict[str, Any]) -> float | None:
        if line.get("shipped") == "mean of the clients' models":
            return None  # that is the arm's own line
        clients = (line.get("clients") or {}).values()
        known = [value for item in clients if (value := number(item.get(name))) is not None]
        return sum(known) / len(known) if known else None

    return mean


def _clients_line(axes: Any, row: Row, measure: Measure, style: dict[str, Any]) -> None:
    if any((run.config.get("evaluation") or {}).get("where") == "clients" for run in row.counted):
        return  # that is the arm's own line, too
    found = curve(row, _clients_mean(measure.name), lambda run, index: float(index))
    if len(found.x) > 1:
        means = [stat.mean for stat in found.y]
        axes.plot(found.x, means, color=style["color"], linestyle=(0, (4, 2)), linewidth=1.1,
                  alpha=0.8, gid="clients")  # fmt: skip


def _line(axes: Any, points: list[tuple[float, Stat]], style: dict[str, Any], label: str) -> Line2D:
    x = [at for at, _ in points]
    means = [stat.mean if math.isfinite(stat.mean) else math.nan for _, stat in points]
    every = 1 if len(x) <= _MARKED_POINTS else math.ceil(len(x) / 10)
    (line,) = axes.plot(x, means, label=label, markevery=every, **style)
    if any(stat.sd for _, stat in points):
        low = [mean - (stat.sd or 0) for mean, (_, stat) in zip(means, points, strict=True)]
        high = [mean + (stat.sd or 0) for mean, (_, stat) in zip(means, points, strict=True)]
        axes.fill_between(x, low, high, color=style["color"], alpha=0.16, linewidth=0)
    assert isinstance(line, Line2D)
    return line


def _level(axes: Any, stat: Stat, style: dict[str, Any], label: str) -> Line2D:
    """Draw an arm that does not move along the axis: a level line at its last value."""
    if stat.sd:
        axes.axhspan(stat.mean - stat.sd, stat.mean + stat.sd, color=style["color"], alpha=0.08,
                     linewidth=0)  # fmt: skip
    line = axes.axhline(stat.mean, color=style["color"], linestyle=(0, (1, 1.2)), label=label)
    assert isinstance(line, Line2D)
    return line


def _finish(axes: Any, panel: Panel, unit: str | None, xs: list[float]) -> None:
    measure = panel.measure
    axes.set_xlabel(panel.label)
    axes.set_title(panel.title)
    if measure.show is human.percent:
        # Ticks may be finer than a per cent where the arms are close.
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
    if unit is None:
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 5, 10]))
    else:
        scale_axis(axes.xaxis, xs, unit, log=True)
    values = [value for line in axes.lines for value in line.get_ydata() if value > 0]
    finite = [value for value in values if math.isfinite(value)]
    if measure.name == "perplexity" and finite and max(finite) > 20 * min(finite):
        scale_axis(axes.yaxis, finite, "", log=True)


def _legend(figure: Figure, handles: list[Line2D], all_axes: Sequence[Any]) -> None:
    lines = [line for axes in all_axes for line in axes.lines]
    if any(line.get_gid() == "clients" for line in lines):
        label = "mean over the\nclients"
        dashes = (0, (4, 2))
        handles.append(
            Line2D([], [], color="#777777", linestyle=dashes, linewidth=1.1, label=label)
        )
    figure.legend(handles=handles, loc="outside right upper", handlelength=2.4)
