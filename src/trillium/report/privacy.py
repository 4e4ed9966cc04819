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


def hidden(config: Mapping[str, Any]) -> str:
    """Return what masks hide, of the settings of a run; empty where there are none."""
    sums = config.get("sums") or "plain"
    if (sums["name"] if isinstance(sums, Mapping) else sums) != "masked":
        return ""
    least = (config.get("fleet") or {}).get("min_replies")
    who = "all clients of a round" if least is None else f"{least} clients of a round, or more,"
    return (
        f"Sums are masked: a semi-honest server sees what {who} add up to, and nothing of one. Of what "
        "the models themselves tell of the clients' data, masks hide nothing."
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
