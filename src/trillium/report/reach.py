"""What it took to get to an accuracy: the bytes of a client until the first evaluation that has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from trillium.report import human
from trillium.report.costs import bytes_per_client, per_client
from trillium.report.curves import Curve, curve
from trillium.report.human import show_bytes
from trillium.report.measure import MAIN
from trillium.report.read import Run, number
from trillium.report.summary import Row

SHARE = 0.95  # of the best arm's, where no accuracy is named


class Spent(NamedTuple):
    """When an arm got somewhere: after which round, and for how many bytes of a client."""

    round: int
    bytes: float


@dataclass(frozen=True)
class Goal:
    """An accuracy, and which arms get to it.

    Attributes:
        name: column of the CSV file.
        reached: by arm; arms that never get there, or send nothing, are not in it.
    """

    name: str
    short: str
    title: str
    definition: str
    reached: Mapping[str, Spent]

    def shown(self, arm: str) -> str:
        """Return what it took an arm, for people."""
        spent = self.reached.get(arm)
        return human.NONE if spent is None else show_bytes(spent.bytes)


def goals(rows: Sequence[Row], levels: Sequence[float] = ()) -> list[Goal]:
    """Return the accuracies that arms are held against.

    Args:
        levels: as shares; without any it is a share of what the best arm that sends something gets to
            on the same rows, if two such arms were measured on their way.
    """
    measure = next((m for m in MAIN if any(m in row.values for row in rows)), None)
    if measure is None:
        return []
    curves = {row.arm: quality(row, measure) for row in rows}
    if levels:
        return [_goal(f"{100 * level:g} %", f"bytes_to_{measure}_{level:g}", measure, curves,
                      {row.arm: level for row in rows}) for level in levels]  # fmt: skip
    if sum(_sends(found) and len(found.rounds) > 2 for found in curves.values()) < 2:
        return []
    sending = [row for row in rows if _sends(curves[row.arm]) and curves[row.arm].y]
    tops = [(_rows_of(row), max(stat.mean for stat in curves[row.arm].y)) for row in sending]
    wanted = {
        row.arm: SHARE * max(top for data, top in tops if data == _rows_of(row)) for row in sending
    }
    title = f"{100 * SHARE:g} % of the best"
    return [_goal(title, f"bytes_to_{SHARE:g}_of_best_{measure}", measure, curves, wanted)]


def _rows_of(row: Row) -> dict[str, Any]:
    """Return the settings that say which rows clients and test set have."""
    data = row.counted[0].config.get("data") or {}
    return {key: v for key, v in data.items() if key not in ("public", "public_size", "set_aside")}


def quality(row: Row, measure: str = "accuracy") -> Curve:
    """Return a measure of an arm against the bytes of a client, once-only messages among them."""
    return curve(row, lambda line: number(line.get(measure)), _spent)


def _spent(run: Run, round_index: int) -> float | None:
    if run.traffic is None:
        return None
    once = per_client(run.traffic.bytes_once, run) or 0.0
    return (bytes_per_client(run, round_index) or 0.0) + once


def _sends(found: Curve) -> bool:
    return bool(found.x) and found.x[-1] > 0


def _goal(
    title: str, name: str, measure: str, curves: Mapping[str, Curve], wanted: Mapping[str, float]
) -> Goal:
    reached = {}
    for arm, level in wanted.items():
        found = curves[arm]
        points = zip(found.rounds, found.x, found.y, strict=True)
        there = next((Spent(at, x) for at, x, stat in points if stat.mean >= level), None)
        if there is not None and _sends(found):
            reached[arm] = there
    among = " on the same data" if "best" in title else ""
    definition = (
        f"Encoded bytes up and down per client until the first evaluation whose mean {measure} over "
        f"the seeds is at least {title}{among}; what crossed once, as a public set does, is in it."
    )
    return Goal(name, f"To {title}", f"Bytes to {title}", definition, reached)
