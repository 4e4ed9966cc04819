"""Accuracy against cumulative bytes per client, of all arms of one partition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MultipleLocator

from frontier_curves import Point, points
from trillium.report import human
from trillium.report.style import arm_styles, png, quiet_style, scale_axis
from trillium.report.summary import Stat


@dataclass(frozen=True)
class Series:
    """One arm: bytes and accuracy of its evaluations.

    Attributes:
        title: for the legend.
        x: bytes up and down per client; where nothing was sent yet, the point is left out.
        y: accuracy over the seeds.
        is_level: drawn as a level line at its best, because it sends nothing.
        is_ours: drawn bold, the point before the first round as a star.
    """

    title: str
    x: Sequence[float]
    y: Sequence[Stat]
    is_level: bool = False
    is_ours: bool = False


def plot(series: Sequence[Series], partition: str, reference: Point | None, margin: float) -> bytes:
    """Return a PNG.

    Args:
        series: the arms, in the order of the legend.
        partition: for the title.
        reference: the baseline's best point.
        margin: how far below it a dotted line is drawn.
    """
    with quiet_style():
        figure = Figure(figsize=(9.0, 5.2), layout="constrained")
        axes = figure.subplots()
        styles = arm_styles([s.title for s in series if not s.is_level])
        for each in series:
            if each.is_level:
                level = max(stat.mean for stat in each.y)
                label = f"{each.title} ({human.percent(level)})"
                axes.axhline(level, color="#333333", linestyle="--", linewidth=1.2, label=label)
                continue
            sent = [(x, stat) for x, stat in zip(each.x, each.y, strict=True) if x > 0]
            xs, means = [x for x, _ in sent], [stat.mean for _, stat in sent]
            style = styles[each.title]
            width = 2.6 if each.is_ours else 1.3
            axes.plot(xs, means, label=each.title, linewidth=width, markersize=3.5, **style)
            low = [stat.mean - (stat.sd or 0.0) for _, stat in sent]
            high = [stat.mean + (stat.sd or 0.0) for _, stat in sent]
            axes.fill_between(xs, low, high, color=style["color"], alpha=0.12, linewidth=0)
            if each.is_ours and each.x[0] > 0:
                axes.plot(
                    xs[:1], means[:1], marker="*", markersize=13, linestyle="none",
                    color=style["color"], markeredgecolor="black", markeredgewidth=0.6, zorder=5,
                )  # fmt: skip
        if reference is not None:
            axes.axhline(
                reference.accuracy.mean - margin, color="#777777", linestyle=":", linewidth=1.2,
                label=f"FedAvg-LoRA's best − {points(margin)}",
            )  # fmt: skip
        axes.plot(
            [], [], marker="*", markersize=11, linestyle="none", color="white",
            markeredgecolor="black", label="head alone, before round 1",
        )  # fmt: skip
        scale_axis(axes.xaxis, [x for s in series for x in s.x if x > 0], "B", log=True)
        top = max(stat.mean for s in series for stat in s.y)
        axes.set_ylim(max(0.0, top - 0.6), min(1.0, top + 0.03))
        axes.yaxis.set_major_locator(MultipleLocator(0.1))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
        axes.set_xlabel("Bytes up and down per client, so far")
        axes.set_ylabel("Test accuracy")
        axes.set_title(f"Banking77, MiniLM, ten clients, {partition.replace('_', ' ')}")
        figure.legend(loc="outside right upper")
        return png(figure)
