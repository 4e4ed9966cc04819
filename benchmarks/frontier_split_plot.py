"""Accuracy against bytes per client of arms and cuts, a panel for each model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MultipleLocator

from trillium.report.style import arm_styles, png, quiet_style, scale_axis
from trillium.report.summary import Stat


@dataclass(frozen=True)
class Dot:
    """An arm at a cut.

    Attributes:
        title: for the legend.
        cut: written beside the dot.
        num_bytes: up and down, of a client.
        accuracy: over the seeds.
    """

    title: str
    cut: int
    num_bytes: float
    accuracy: Stat


def plot(panels: Mapping[str, Sequence[Dot]]) -> bytes:
    """Return a PNG.

    Args:
        panels: what is shown of each model.
    """
    titles = list(dict.fromkeys(dot.title for dots in panels.values() for dot in dots))
    with quiet_style():
        figure = Figure(figsize=(4.3 * len(panels) + 2.6, 4.4), layout="constrained")
        styles = arm_styles(titles)
        drawn = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (name, dots) in zip(drawn, panels.items(), strict=True):
            for title in titles:
                own = [dot for dot in dots if dot.title == title]
                style = styles[title] | {"linestyle": "none"}
                axes.errorbar(
                    [dot.num_bytes for dot in own],
                    [dot.accuracy.mean for dot in own],
                    [dot.accuracy.sd or 0.0 for dot in own],
                    label=title, markersize=7, elinewidth=1, capsize=2, **style,
                )  # fmt: skip
                for dot in own if len({dot.cut for dot in dots}) > 1 else ():
                    axes.annotate(
                        f"{dot.cut}", (dot.num_bytes, dot.accuracy.mean), fontsize=8,
                        xytext=(6, 3), textcoords="offset points",
                    )  # fmt: skip
            scale_axis(axes.xaxis, [dot.num_bytes for dot in dots], "B", log=True)
            low, high = (f(dot.accuracy.mean for dot in dots) for f in (min, max))
            axes.set_ylim(low - 0.03, high + 0.03)
            axes.yaxis.set_major_locator(MultipleLocator(0.02 if high - low < 0.2 else 0.1))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
            axes.set_xlabel("Bytes up and down per client")
            axes.set_title(name)
        drawn[0].set_ylabel("Test accuracy")
        handles, labels = drawn[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper")
        figure.suptitle("Banking77, three clients, 20 epochs; numbers are cuts", fontsize=10)
        return png(figure)
