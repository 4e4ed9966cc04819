"""Settings that were tried on rows of their own: which are best."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trillium.config.comparison import choices
from trillium.config.experiment import Tree
from trillium.errors import UserError
from trillium.report.measure import MAIN
from trillium.report.read import read_runs
from trillium.report.summary import Row, shown, summarise


@dataclass(frozen=True)
class Chosen:
    """The settings of an arm that did best.

    Attributes:
        label: of the run.
        figure: what it reached, for people.
    """

    settings: Tree
    label: str
    figure: str


def choose(tree: Mapping[str, Any], folder: Path) -> dict[str, Chosen]:
    """Return the best settings of each arm, by the last evaluation; the loss decides between equals.

    Args:
        folder: of the comparison that tried them.

    Raises:
        UserError: nothing has finished.
    """
    rows = {row.arm: row for row in summarise(read_runs(folder)) if row.is_finished}
    names = [n for n in (*MAIN, "loss") if any(n in row.values for row in rows.values())]
    if not names:
        raise UserError(
            str(folder), "no run of the grid has finished", "See report.html there for the reasons"
        )
    measure = names[0]

    def score(row: Row) -> tuple[float, float]:
        mean, loss = row.values[measure].mean, row.values.get("loss")
        return mean if measure in MAIN else -mean, 0.0 if loss is None else -loss.mean

    found = {}
    for arm, points in choices(tree).items():
        known = {label: rows[label] for label in points if label in rows}
        known = {label: row for label, row in known.items() if measure in row.values}
        if known:
            label = max(known, key=lambda name: score(known[name]))
            figure = f"{measure} {shown(known[label], measure)}"
            found[arm] = Chosen(points[label], label, figure)
    return found
