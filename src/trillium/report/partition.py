"""How the data lies with the clients: stacked bars while they can be read, a heat-map beyond."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from trillium.report.read import Run
from trillium.report.style import short

_STACKED_LABELS = 8
_STACKED_CLIENTS = 30
_TICKS = 40
# From white over Okabe & Ito's blue to black: the order survives every colour blindness.
_COUNTS = LinearSegmentedColormap.from_list("counts", ["#FFFFFF", "#9CC9E6", "#0072B2", "#00213A"])
_STACK = ("#332288", "#88CCEE", "#44AA99", "#DDCC77", "#CC6677", "#AA4499", "#117733", "#BBBBBB")


def label_counts(run: Run) -> tuple[list[str], list[str], list[list[int]]]:
    """Return clients, labels and the counts of shape (clients, labels) of a run.

    Without labels, as in language modelling, there is one column: the examples.
    """
    clients = run.data.get("clients") or {}
    names = [str(label) for label in run.data.get("labels") or []]
    for client in clients.values():  # a label that stands with a client but not in the list
        names += [label for label in client.get("labels") or {} if label not in names]
    held = [client.get("labels") or {} for client in clients.values()]
    if not names or not any(held):
        totals = [[int(client.get("num_examples") or 0)] for client in clients.values()]
        return list(clients), [], totals
    return list(clients), names, [[int(labels.get(n) or 0) for n in names] for labels in held]


def plot_partition(runs: Sequence[Run]) -> Figure | None:
    """The examples of every client by label, of the first run that says so."""
    run = next((run for run in runs if run.data.get("clients")), None)
    if run is None:
        return None
    clients, labels, counts = label_counts(run)
    if not any(map(any, counts)):
        return None
    if len(labels) > _STACKED_LABELS or (labels and len(clients) > _STACKED_CLIENTS):
        return _heat_map(clients, labels, counts)
    sizes = [client.get("num_examples") for client in run.data["clients"].values()]
    one_each = not labels or [*map(sum, counts)] == sizes
    what = "Training examples" if one_each else "Labels of training examples"
    return _stacked(clients, labels, counts, what)


def _stacked(clients: list[str], labels: list[str], counts: list[list[int]], what: str) -> Figure:
    height = min(1.3 + 0.27 * len(clients), 9.0)
    figure = Figure(figsize=(8.2, height), layout="constrained")
    axes = figure.subplots()
    start = [0] * len(clients)
    for index in range(len(counts[0])):
        part = [row[index] for row in counts]
        axes.barh(range(len(clients)), part, left=start, height=0.78,
                  color=_STACK[index] if labels else "#5B7FA6",
                  edgecolor="white", linewidth=0.4)  # fmt: skip
        start = [a + b for a, b in zip(start, part, strict=True)]
    axes.set_xlabel(what)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_ylim(len(clients) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    _ticks(axes.yaxis, clients)
    if labels:
        patches = [Patch(color=_STACK[i], label=short(name)) for i, name in enumerate(labels)]
        figure.legend(handles=patches, loc="outside right upper", title="Label", alignment="left")
    return figure


def _heat_map(clients: list[str], labels: list[str], counts: list[list[int]]) -> Figure:
    across = min(max(0.115 * len(labels), 2.4), 10.0)
    height = min(max(2.2 + 0.2 * len(clients), 3.6), 10.0)
    figure = Figure(figsize=(across + 2.9, height), layout="constrained")
    axes, totals = figure.subplots(1, 2, sharey=True, width_ratios=[across, 0.9])
    # Counts are skewed; the square root keeps the small ones visible beside the large ones.
    image = axes.pcolormesh(
        counts,
        cmap=_COUNTS,
        norm=PowerNorm(0.5, vmin=0, vmax=max(map(max, counts)) or 1),
        edgecolors="#EFEFEF",
        linewidth=0.3,
    )
    axes.set_title("Training examples by label")
    axes.grid(visible=False)
    _ticks(axes.xaxis, labels, offset=0.5, rotation=90, width=18)
    _ticks(axes.yaxis, clients, offset=0.5)
    totals.stairs([sum(row) for row in counts], orientation="horizontal", fill=True,
                  color="#5B7FA6")  # fmt: skip
    totals.set_title("All")
    totals.xaxis.set_major_locator(MaxNLocator(2, integer=True))
    totals.grid(axis="y", visible=False)
    totals.tick_params(axis="y", length=0)
    axes.set_ylim(len(clients), 0)
    bar = figure.colorbar(image, ax=totals, aspect=30, pad=0.04)
    bar.outline.set_visible(False)
    bar.locator = MaxNLocator(6, integer=True)
    bar.update_ticks()
    return figure


def _ticks(
    axis: Any, names: list[str], offset: float = 0.0, rotation: float = 0, width: int = 22
) -> None:
    """Name every position, or every second, fifth … where there are too many to read."""
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, len(names)) if len(names) / step <= 80)
    if rotation == 0:
        step = next(s for s in (1, 2, 5, 10, 20, 50, len(names)) if len(names) / s <= _TICKS)
    at = range(0, len(names), max(step, 1))
    size = 8.5 if len(names) <= 20 else 6.5
    shown = [short(names[index], width, 1) for index in at]
    axis.set_ticks([index + offset for index in at], shown, fontsize=size, rotation=rotation)
