"""All plots of a report, drawn to PNG."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.figure import Figure

from trillium.report.bars import plot_costs, plot_kinds
from trillium.report.curves import plot_bytes, plot_flops, plot_rounds
from trillium.report.depth import plot_leakage
from trillium.report.partition import plot_partition
from trillium.report.style import png, quiet_style
from trillium.report.summary import Row
from trillium.report.times import Clock, plot_times


@dataclass(frozen=True)
class Plot:
    """One drawn plot: its file name without the ending, what it shows, and the PNG."""

    name: str
    title: str
    caption: str
    png: bytes = field(repr=False)

    def _repr_png_(self) -> bytes:
        """Show it in a notebook."""
        return self.png

    def save(self, path: str | Path) -> None:
        """Write the picture into a file."""
        Path(path).write_bytes(self.png)


_Draw = Callable[[Sequence[Row], Clock | None], Figure | None]

_PLOTS: tuple[tuple[str, str, str, _Draw], ...] = (
    (
        "rounds",
        "Quality against rounds",
        "Mean over the seeds, the band is ± one standard deviation. Round 0 is before training. "
        "Dotted level lines are arms that were evaluated once only.",
        lambda rows, clock: plot_rounds(rows),
    ),
    (
        "bytes",
        "Quality against communication",
        "Encoded bytes up and down per client until each evaluation, on a logarithmic axis. "
        "Dotted level lines are the last value of arms that send nothing.",
        lambda rows, clock: plot_bytes(rows),
    ),
    (
        "flops",
        "Quality against client compute",
        "Floating-point operations per client until each evaluation, on a logarithmic axis. "
        "Dotted level lines are the last value of arms whose clients compute nothing.",
        lambda rows, clock: plot_flops(rows),
    ),
    (
        "time",
        "Quality against time",
        "When each evaluation would be reached at other places: what crossed and what was computed is "
        "as measured, how long it takes follows from links and devices.",
        plot_times,
    ),
    (
        "kinds",
        "What crosses the wire",
        "Left, encoded bytes in a round in which a client takes part, on a logarithmic axis; "
        "right, what these bytes consist of. Arms that send nothing are left out.",
        lambda rows, clock: plot_kinds(rows),
    ),
    (
        "leakage",
        "Leakage against cut depth",
        "What simple attacks recover of held-out texts from the activations that the server reads, "
        "and the quality of the model. Grey lines join arms that differ in the cut alone, or in "
        "the cut and in which layers have adapters.",
        lambda rows, clock: plot_leakage(rows),
    ),
    (
        "costs",
        "Time and memory",
        "Bars are means over the seeds, whiskers ± one standard deviation.",
        lambda rows, clock: plot_costs(rows),
    ),
    (
        "partition",
        "How the data lies with the clients",
        "",
        lambda rows, clock: plot_partition([run for row in rows for run in row.runs]),
    ),
)

PLOT_NAMES = tuple(name for name, *_ in _PLOTS)


def draw_plots(
    rows: Sequence[Row], names: Collection[str] = PLOT_NAMES, clock: Clock | None = None
) -> list[Plot]:
    """Draw every plot, or those that are named, for which the runs have values.

    Args:
        clock: for times; that of places that many people know where it is left out.
    """
    drawn = []
    with quiet_style():
        for name, title, caption, draw in _PLOTS:
            figure = draw(rows, clock) if name in names else None
            if figure is not None:
                drawn.append(Plot(name, title, caption, png(figure)))
    return drawn
