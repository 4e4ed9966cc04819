"""What a measure is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from trillium.report.read import Run


@dataclass(frozen=True)
class Measure:
    """One measure: `of` takes it from a run, `show` writes a mean and its deviation for people.

    `name` is the column of the CSV file, `short` the column of the terminal, `title` the axis.
    """

    name: str
    short: str
    title: str
    definition: str
    of: Callable[[Run], float | None]
    show: Callable[[float, float | None], str]
