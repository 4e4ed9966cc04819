"""The table of the page: an arm a line, with what it reached and what that took."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trillium.report import human
from trillium.report.curves import plotted_measures
from trillium.report.interval import interval
from trillium.report.measure import Measure
from trillium.report.measures import BY_NAME
from trillium.report.quality import QUALITY
from trillium.report.reach import Goal
from trillium.report.summary import Row, shown
from trillium.report.times import Clock
from trillium.report.words import is_better

# Of all measures those that most people look at, with short titles.
_COSTS = {
    "bytes_per_client": "Bytes",
    "flops_per_client": "Compute",
    "peak_bytes_client": "Peak memory",
    "inverter_accuracy": "Recovered words",
    "epsilon": "ε",
    "epsilon_text": "ε of a text",
    "wall_seconds": "Wall time",
}


@dataclass(frozen=True)
class Column:
    """A column: its title and what it means."""

    title: str
    definition: str


@dataclass(frozen=True)
class Cell:
    """A value of an arm.

    Attributes:
        text: for people, with its interval.
        key: by which it is sorted; empty where it is not known.
        best: whether no framework has a better one.
    """

    text: str
    interval: str
    key: str
    best: bool


@dataclass(frozen=True)
class Line:
    """An arm with its values."""

    row: Row
    cells: list[Cell]


@dataclass(frozen=True)
class Timed:
    """How long the runs of arms take at one place, in seconds."""

    title: str
    definition: str
    seconds: Mapping[str, float]


def results(
    rows: Sequence[Row], goals: Sequence[Goal], times: Sequence[Timed] = ()
) -> tuple[list[Column], list[Line]]:
    """Return the columns and the lines, in the order of the rows.

    Args:
        times: how long a run takes elsewhere, by arm.
    """
    costs = [BY_NAME[name] for name in _COSTS if any(name in row.values for row in rows)]
    measures = [*plotted_measures(rows), *costs]
    columns = [Column(_COSTS.get(m.name, m.title), m.definition) for m in measures]
    table = [_measured(rows, measure) for measure in measures]
    for goal in goals:
        values = {arm: float(spent.bytes) for arm, spent in goal.reached.items()}
        texts = {row.arm: goal.shown(row.arm) for row in rows}
        columns.append(Column(goal.title, goal.definition))
        table.append(_column(rows, values, texts, least=True))
    for timed in times:
        texts = {arm: human.duration(seconds) for arm, seconds in timed.seconds.items()}
        columns.append(Column(timed.title, timed.definition))
        table.append(_column(rows, timed.seconds, texts, least=True))
    return columns, [
        Line(row, [column[place] for column in table]) for place, row in enumerate(rows)
    ]


def timed(rows: Sequence[Row], clock: Clock) -> list[Timed]:
    """Return how long the runs of arms would take at the places of a clock."""
    return [
        Timed(
            f"Time, {place}",
            f"How long the run would take with {clock.described(place)}.",
            {row.arm: total for row in rows if (total := clock.total(row, place)) is not None},
        )
        for place in clock.places
    ]


def _measured(rows: Sequence[Row], measure: Measure) -> list[Cell]:
    values = {row.arm: row.values[measure.name].mean for row in rows if measure.name in row.values}
    intervals = {
        row.arm: found.shown for row in rows if (found := interval(row, measure.name)) is not None
    }
    least = measure not in QUALITY or not is_better(measure.name, 1.0, 0.0)
    texts = {row.arm: shown(row, measure.name) for row in rows}
    return _column(rows, values, texts, intervals, least=least)


def _column(
    rows: Sequence[Row],
    values: Mapping[str, float],
    texts: Mapping[str, str],
    intervals: Mapping[str, str] | None = None,
    *,
    least: bool,
) -> list[Cell]:
    """Return the cells of a column; the best of two frameworks or more is marked."""
    known = [
        values[row.arm]
        for row in rows
        if not row.is_baseline and row.is_finished and math.isfinite(values.get(row.arm, math.nan))
    ]
    top = (min if least else max)(known) if len(known) > 1 and len({*known}) > 1 else None
    return [
        Cell(
            texts.get(row.arm, human.NONE),
            (intervals or {}).get(row.arm, ""),
            f"{values[row.arm]:.6g}" if row.arm in values else "",
            not row.is_baseline and top is not None and values.get(row.arm) == top,
        )
        for row in rows
    ]
