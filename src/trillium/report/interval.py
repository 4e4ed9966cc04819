"""How sure a share is that was measured once: the interval of Wilson, from the number of test rows.

Probable inference, the law of succession, and statistical inference (Wilson, 1927).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from trillium.report.read import Run, number
from trillium.report.summary import Row

_Z = 1.959964  # of 95 %
SHARES = ("accuracy", "exact_match")
MEANING = (
    "In brackets the 95 % interval (Wilson) that follows from the number of test rows: as far as other "
    "rows of the same kind may lead away from these. Other seeds may lead further."
)


@dataclass(frozen=True)
class Interval:
    """Where a share lies with 95 % confidence, having been measured on so many rows."""

    low: float
    high: float
    num_rows: int

    @property
    def shown(self) -> str:
        """It, for people."""
        return f"[{100 * self.low:.1f}, {100 * self.high:.1f}]"


def wilson(share: float, num_rows: int) -> Interval:
    """Return the interval of a share of so many rows."""
    spread = _Z**2 / num_rows
    middle = (share + spread / 2) / (1 + spread)
    half = _Z / (1 + spread) * math.sqrt(share * (1 - share) / num_rows + spread / num_rows / 4)
    return Interval(max(middle - half, 0.0), min(middle + half, 1.0), num_rows)


def interval(row: Row, measure: str) -> Interval | None:
    """Return the interval of a measure of an arm; of one seed alone, and of shares of rows."""
    stat = row.values.get(measure)
    num_rows = num_test_rows(row.counted[0], measure)
    if measure not in SHARES or stat is None or stat.num > 1 or not num_rows:
        return None
    return wilson(stat.mean, num_rows) if 0 <= stat.mean <= 1 else None


def num_test_rows(run: Run, measure: str) -> int:
    """Return on how many held-out rows a measure of a run is; 0 where that is not known."""
    known = number((run.kept or [{}])[-1].get("num_examples"))
    if known is None:
        known = number((run.data.get("test") or {}).get("num_examples")) or 0
    task = run.config.get("task")
    answered = number(task.get("generate")) if isinstance(task, dict) else None
    return int(min(known, answered or 0)) if measure == "exact_match" else int(known)
