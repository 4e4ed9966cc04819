"""What a run guarantees, in words; from the lines of its measures alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trillium.report import human
from trillium.report.measure import Measure
from trillium.report.read import number

EPSILON = Measure(
    "epsilon",
    "ε",
    "ε of the run",
    "Differential privacy of all that the run has released, for one unit more or less; the notes of "
    "the table say which unit, and against whom.",
    lambda run: run.last("epsilon"),
    human.plain,
)


def guarantee(line: Mapping[str, Any]) -> str:
    """Return what a line of measures guarantees; empty where the run is not private."""
    if not line.get("unit"):
        return ""
    if (epsilon := number(line.get("epsilon"))) is None:
        return "No ε can be stated: something is released without noise."
    return (
        f"ε = {epsilon:.3g} at δ = {line['delta']:g} for one {line['unit']} more or less, against "
        f"{line['adversary']}; not counted: {line['not_counted']}."
    )
