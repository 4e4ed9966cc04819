"""What a frontier benchmark compares: accuracy and bytes, evaluation by evaluation."""

from __future__ import annotations

from dataclasses import dataclass

from trillium.report.summary import Stat


@dataclass(frozen=True)
class Point:
    """An arm at one evaluation, over its seeds.

    Attributes:
        round: 0 is before the first; a head in closed form is there already.
        accuracy: on the test rows.
        bytes_up, bytes_down: per client until then, of the mean seed.
    """

    round: int
    accuracy: Stat
    bytes_up: float
    bytes_down: float

    @property
    def bytes_total(self) -> float:
        """Up and down."""
        return self.bytes_up + self.bytes_down


Curve = list[Point]


def best(curve: Curve) -> Point | None:
    """Return the point of the highest mean accuracy, the first of equals."""
    return max(curve, key=lambda point: point.accuracy.mean, default=None)


def first(curve: Curve, accuracy: float) -> Point | None:
    """Return the first point whose mean accuracy is not below one."""
    return next((point for point in curve if point.accuracy.mean >= accuracy), None)


def within(curve: Curve, num_bytes: float) -> Point | None:
    """Return the last point that cost no more than so many bytes."""
    found = [point for point in curve if 0 < point.bytes_total <= num_bytes]
    return found[-1] if found else None


def a_round(curve: Curve) -> float | None:
    """Return the mean bytes of a round, what was sent before the first one aside."""
    if len(curve) < 2:
        return None
    begin, end = curve[0], curve[-1]
    return (end.bytes_total - begin.bytes_total) / (end.round - begin.round)


def points(share: float) -> str:
    """Return a difference of accuracies in words."""
    return f"{100 * share:g} {'pt' if share == 0.01 else 'pts'}"
