"""Plots of plans: bytes and FLOPs by setting, along a sweep where there is one, and time in parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from trillium.config.sweep import Sweep, curves
from trillium.files import write_atomic
from trillium.plan.advice import Advice
from trillium.plan.arms import Arm
from trillium.plan.page import framework_of, plan_page
from trillium.plan.terminal import seconds_of, values
from trillium.report.style import arm_styles, png, quiet_style, scale_axis, short

# None of them is the hue of a framework.
_PARTS = {"compute": "#332288", "wire": "#CC6677", "waiting": "#BBBBBB"}
_MEASURES = (("Bytes of a round, up and down", "B"), ("FLOPs of a round", "FLOPs"))


def write_plots(
    folder: Path,
    arms: Sequence[Arm],
    sweep: Sweep | None,
    advice: Advice,
    notes: Sequence[str] = (),
) -> list[Path]:
    """Write plots as PNG, and a page that holds them, and return the paths.

    Args:
        sweep: the one setting with several values, if there is one.
        notes: what else stands there, such as cuts that were looked for.
    """
    folder.mkdir(parents=True, exist_ok=True)
    planned = [arm for arm in arms if arm.tiers]
    with quiet_style():
        lines = {} if sweep is None else curves([arm.label for arm in planned], sweep)
        costs = _curves(planned, lines, sweep[0]) if sweep and lines else _bars(planned)
        found = {"costs": png(costs)}
        if any(arm.time is not None for arm in planned):
            found["time"] = png(_times(planned))
    paths = []
    for name, image in found.items():
        path = folder / f"plan_{name}.png"
        path.write_bytes(image)
        paths.append(path)
    page = folder / "plan.html"
    write_atomic(page, plan_page(arms, advice, found, notes))
    return [*paths, page]


def _bars(arms: Sequence[Arm]) -> Figure:
    figure = Figure(figsize=(9.4, 1.2 + 0.45 * len(arms)), layout="constrained")
    styles = arm_styles({arm.label: framework_of(arm) for arm in arms})
    names = [short(arm.label, 30, 1) for arm in arms]
    panels: Any = figure.subplots(1, 2, sharey=True)
    for place, (axes, (title, unit)) in enumerate(zip(panels, _MEASURES, strict=True)):
        found = [values(arm)[place] for arm in arms]
        colours = [styles[arm.label]["color"] for arm in arms]
        axes.barh(range(len(arms)), found, color=colours, height=0.6)
        scale_axis(axes.xaxis, found, unit, log=True)
        low, high = axes.get_xlim()
        axes.set_xlim(low / 3, high)
        axes.set_title(title)
    panels[0].set_yticks(range(len(arms)), names)
    panels[0].invert_yaxis()
    return figure


def _curves(arms: Sequence[Arm], lines: Mapping[str, Mapping[float, str]], key: str) -> Figure:
    """Draw bytes and FLOPs against the value of one setting; what does not have it is level.

    Args:
        lines: labels of those that have the setting, by line and value.
    """
    figure = Figure(figsize=(9.4, 3.6), layout="constrained")
    swept = {label for points in lines.values() for label in points.values()}
    level = [arm.label for arm in arms if arm.label not in swept]
    known = {arm.label: framework_of(arm) for arm in arms}
    swept_as = {name: known[next(iter(points.values()))] for name, points in lines.items()}
    styles = arm_styles({**swept_as, **{name: known[name] for name in level}})
    panels: Any = figure.subplots(1, 2)
    for place, (axes, (title, unit)) in enumerate(zip(panels, _MEASURES, strict=True)):
        found = {arm.label: values(arm)[place] for arm in arms}
        for name, points in lines.items():
            axes.plot(
                sorted(points),
                [found[points[value]] for value in sorted(points)],
                label=short(name, 30, 1),
                **styles[name],
            )
        for name in level:
            colour = styles[name]["color"]
            axes.axhline(found[name], label=short(name, 30, 1), color=colour, linestyle="--")
        scale_axis(axes.yaxis, [*found.values()], unit, log=True)
        axes.set_title(title)
        axes.set_xlabel(key)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right upper")
    return figure


def _times(arms: Sequence[Arm]) -> Figure:
    """Draw how the slowest client of each plan spends a round."""
    known = [arm for arm in arms if arm.time is not None]
    figure = Figure(figsize=(9.4, 1.2 + 0.45 * len(known)), layout="constrained")
    axes: Any = figure.subplots()
    for index, arm in enumerate(known):
        start = 0.0
        for part, colour in _PARTS.items():
            seconds = max(seconds_of(arm, part), 0.0)
            label = part if index == 0 else None
            axes.barh(index, seconds, left=start, color=colour, height=0.6, label=label)
            start += seconds
    axes.set_yticks(range(len(known)), [short(arm.label, 30, 1) for arm in known])
    axes.invert_yaxis()
    scale_axis(axes.xaxis, [arm.time.seconds for arm in known if arm.time], "s", log=False)
    axes.set_title("A round of the slowest client")
    figure.legend(loc="outside right upper")  # inside it would lie on the bars
    return figure
