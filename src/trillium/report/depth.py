"""What a cut model gives away, against how deep it is cut."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from trillium.report import human
from trillium.report.curves import plotted_measures
from trillium.report.leakage import LEAKAGE
from trillium.report.measure import Measure
from trillium.report.style import arm_styles, short
from trillium.report.summary import Row, families

_COLUMNS = 3
_ASIDE = 0.07  # of a block, between points of arms that differ in more than the cut
_ATTACKS = tuple(measure for measure in LEAKAGE if not measure.name.startswith("epsilon"))


def plot_leakage(rows: Sequence[Row]) -> Figure | None:
    """Draw a panel per attack, and one of the quality, where arms are cut at different depths."""
    measured = [
        row
        for row in rows
        if _cut(row) is not None and any(measure.name in row.values for measure in _ATTACKS)
    ]
    if len({_cut(row) for row in measured}) < 2:
        return None
    measures = [
        measure
        for measure in (*plotted_measures(measured), *_ATTACKS)
        if any(measure.name in row.values for row in measured)
    ]
    styles = arm_styles(families(rows))
    height = -(-len(measures) // _COLUMNS)
    figure = Figure(figsize=(10.2, 0.4 + 2.7 * height), layout="constrained")
    panels = [*figure.subplots(height, _COLUMNS, squeeze=False).flat]
    for axes, measure in zip(panels, measures, strict=False):
        _panel(axes, measure, measured, styles)
    for axes in panels[len(measures) :]:
        axes.set_axis_off()
    handles = [
        Line2D([], [], **{**styles[row.arm], "linestyle": "none"}, label=short(row.arm))
        for row in measured
    ]
    figure.legend(handles=handles, loc="outside right upper")
    return figure


def _panel(
    axes: Any, measure: Measure, rows: Sequence[Row], styles: Mapping[str, Mapping[str, Any]]
) -> None:
    """Draw one measure against the cut."""
    families: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        families[_family(row)].append(row)
    for index, family in enumerate(families.values()):
        aside = _ASIDE * (index - (len(families) - 1) / 2)  # else points would hide each other
        points = []
        for row in family:
            stat, at = row.values.get(measure.name), (_cut(row) or 0) + aside
            if stat is not None:
                points.append((at, stat.mean))
                style = {**styles[row.arm], "linestyle": "none"}
                axes.errorbar(at, stat.mean, yerr=stat.sd or None, capsize=2, zorder=2, **style)
        if points:
            axes.plot(*zip(*sorted(points), strict=True), color="#BBBBBB", linewidth=1.2, zorder=1)
    axes.set_title(measure.title)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel("Blocks in front of the cut")
    if measure.show is human.percent:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
    if measure in _ATTACKS:
        axes.set_ylim(0, 1.03)
    axes.margins(x=0.12)


def _cut(row: Row) -> int | None:
    """Return how many blocks an arm's clients run, if it cuts the model."""
    framework = row.counted[0].config.get("framework")
    cut = framework.get("cut") if isinstance(framework, dict) else None
    return cut if isinstance(cut, int) else None


def _family(row: Row) -> str:
    """Return what is equal in arms that differ in the cut, the layers of the adapter and the seed."""
    config = {**row.counted[0].config, "seed": None}
    for name, key in (("framework", "cut"), ("adapter", "layers")):
        if isinstance(config.get(name), dict):
            config[name] = {**config[name], key: None}
    return json.dumps(config, sort_keys=True, default=str)
