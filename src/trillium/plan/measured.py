"""What was measured nearest to a plan, and in words how that differs from it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from trillium.plan.evidence import Line, Way
from trillium.plan.point import FACTOR, Difference, Point, differences
from trillium.report.human import NONE, percent, plain


@dataclass(frozen=True)
class Measured:
    """The measured line that is nearest to a plan.

    Attributes:
        differences: of its point from the plan's.
    """

    line: Line
    differences: tuple[Difference, ...]

    @property
    def is_near(self) -> bool:
        """Whether it speaks for the plan: each number within `FACTOR`, all else equal."""
        return all(one.near for one in self.differences)

    @property
    def way(self) -> Way | None:
        """How far the arm got there."""
        return self.line.way

    @property
    def known(self) -> Way | None:
        """The same where it speaks for the plan; else nothing is known."""
        return self.line.way if self.is_near else None

    def to_dict(self) -> dict[str, Any]:
        """Return it as values that JSON can hold."""
        way = self.way
        return {
            "arm": self.line.arm,
            "own": self.line.own,
            "commit": self.line.commit,
            "near": self.is_near,
            "share_of_the_way": None if way is None else vars(way),
            "measure": self.line.measure,
            "facts": self.line.facts,
            "settings": self.line.settings,
            "seeds": [seed.model_dump() for seed in self.line.seeds],
            "differences": [vars(one) for one in self.differences],
        }


def nearest(point: Point, lines: Iterable[Line]) -> Measured | None:
    """Return what was measured nearest to a point, with the same framework and task.

    What is near comes first, then what is the user's own, then what differs on fewest axes by more
    than it may, then the least distance in doublings.
    """
    found = [
        Measured(line, tuple(differences(point, line.point)))
        for line in lines
        if line.point.kind == point.kind
    ]
    return min(found, key=_rank, default=None)


def _rank(found: Measured) -> tuple[bool, bool, int, float]:
    far = sum(not one.near for one in found.differences)
    return far > 0, not found.line.own, far, sum(one.distance for one in found.differences)


def measured_cells(found: Measured | None) -> list[str]:
    """Return what the table says: the share with its interval, and where, with the number of seeds."""
    if found is None or found.way is None:
        return [NONE, NONE]
    return [share(found.way), f"{_near(found)}, {seeds(found.way.num_seeds)}"]


def share(way: Way) -> str:
    """Return a share of the way with its interval, where there is one."""
    shown = f"{round(100 * way.mean)} %"
    if way.low is None or way.high is None:
        return shown
    return f"{shown} [{round(100 * way.low)}, {round(100 * way.high)}]"


def seeds(num: int) -> str:
    """Return how many seeds there are."""
    return "one seed" if num == 1 else f"{num} seeds"


def measured_lines(found: Sequence[tuple[str, Measured]], skipped: Sequence[str]) -> list[str]:
    """Return what was measured nearest to each plan, by its label, and how that differs."""
    if not found:
        return [f"Not used as evidence: {text}" for text in skipped]
    lines = [
        f"Measured, nearest to each (near: numbers within a factor of {FACTOR:g}, all else equal):"
    ]
    texts = {label: [str(one) for one in own.differences] for label, own in found}
    shared = [
        text for text in next(iter(texts.values())) if all(text in own for own in texts.values())
    ]
    if shared and len(found) > 1:
        lines.append(f"  all differ in: {'; '.join(shared)}")
    for label, own in found:
        rest = [text for text in texts[label] if len(found) == 1 or text not in shared]
        differs = f"; differs in: {'; '.join(rest)}" if rest else ""
        lines.append(f"  {label}: {_near(own)}, {_said(own)}{differs}")
    return [*lines, *(f"  not used as evidence: {text}" for text in skipped)]


def _said(found: Measured) -> str:
    line, way = found.line, found.way
    place = f"{line.arm}{' of yours' if line.own else ''} on {line.facts.get('data')}"
    show = plain if line.measure == "loss" else percent
    value = f"{line.measure} {show(line.value)}, {seeds(len(line.seeds))}"
    if way is None:
        return f"{place}: {value}; no way from local only to centralised is known there"
    return f"{place}: {share(way)} of the way from local only to centralised; {value}"


def _near(found: Measured) -> str:
    return "near" if found.is_near else "far"
