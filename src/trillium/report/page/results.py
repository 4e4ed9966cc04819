"""The table of the page: an arm a line, with what it reached and what that took."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trillium.report import human
from trillium.report.interval import interval
from trillium.report.measure import Measure
from trillium.report.measures import BY_NAME, QUALITY
from trillium.report.reach import Goal
from trillium.report.summary import Row, shown
from trillium.report.words import is_better

_COSTS = ("bytes_per_client", "flops_per_client", "peak_bytes_client", "wall_seconds")
_LEAKAGE = ("inverter_accuracy", "epsilon_text")


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


def results(
    rows: Sequence[Row], goals: Sequence[Goal], times: Sequence[Timed] = ()
) -> tuple[list[Column], list[Line]]:
    """Return the columns and the lines, in the order of the rows.

    Args:
        times: how long a run takes elsewhere, by arm.
    """
    measures = [m for m in QUALITY if not m.name.startswith("clients_")]
    measures += [BY_NAME[name] for name in (*_COSTS, *_LEAKAGE)]
    measures = [m for m in measures if any(m.name in row.values for row in rows)]
    columns = [Column(measure.title, measure.definition) for measure in measures]
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


@dataclass(frozen=True)
class Timed:
    """How long the runs of arms take at one place, in seconds."""

    title: str
    definition: str
    seconds: Mapping[str, float]


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
