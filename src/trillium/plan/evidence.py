"""Evidence of accuracy: what runs have measured, how far each arm got, and where.

How far is told as a share of the way from what a client reaches alone to what all data in one place
reach, so that runs on other data can be set side by side.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean, stdev
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from trillium.errors import UserError
from trillium.plan.point import Point, Value

TABLE: Final = Path(__file__).parent / "evidence.json"
"""What comes with Trillium; `benchmarks/comparison/evidence.py` makes it."""

LEAST_WAY: Final = 0.01
"""Of accuracy, or nats of loss: where pooling the data brings less, there is no way to have gone."""

_T95: Final = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Student's t of 95 % for 1, 2, … degrees of freedom; the last one bounds those of more."""


@dataclass(frozen=True)
class Way:
    """How much of the way arms got, as the mean over seeds, with its 95 % interval (Student's t).

    Attributes:
        low, high: of the interval; `None` of one seed.
    """

    mean: float
    low: float | None
    high: float | None
    num_seeds: int


class Seed(BaseModel):
    """What one run has measured; bytes and FLOPs are a client's in the whole run.

    Attributes:
        local_only, centralised: what these have measured on the same rows with the same seed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    seed: int
    value: float
    local_only: float | None
    centralised: float | None
    bytes: float | None
    flops: float | None

    def share(self, sign: int) -> float | None:
        """Return the share of the way from local only to centralised; `None` where there is none.

        Args:
            sign: 1 where more is better, -1 where less is.
        """
        if self.local_only is None or self.centralised is None:
            return None
        whole = self.centralised - self.local_only
        return (self.value - self.local_only) / whole if sign * whole >= LEAST_WAY else None


class Line(BaseModel):
    """What an arm has measured at a point.

    Attributes:
        facts, settings: the point.
        measure: what is measured: an accuracy, or the loss.
        commit: of Trillium, by which it was measured; empty where it is not known.
        own: whether it is the user's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    arm: str
    commit: str
    measure: str
    facts: dict[str, Value]
    settings: dict[str, Value]
    seeds: tuple[Seed, ...]
    own: bool = False

    @property
    def point(self) -> Point:
        """Where it was measured."""
        return Point(self.facts, self.settings)

    @property
    def way(self) -> Way | None:
        """How far it got; `None` where baselines lack, or pooling the data brings nothing."""
        found = [seed.share(sign_of(self.measure)) for seed in self.seeds]
        shares = [share for share in found if share is not None]
        if not shares:
            return None
        mean, num = fmean(shares), len(shares)
        if num == 1:
            return Way(mean, None, None, 1)
        half = _T95[min(num - 1, len(_T95)) - 1] * stdev(shares) / math.sqrt(num)
        return Way(mean, mean - half, mean + half, num)

    @property
    def value(self) -> float:
        """The mean of what was measured."""
        return fmean(seed.value for seed in self.seeds)


class _Table(BaseModel):
    """A file of lines; `common` are settings of every line that does not have others."""

    model_config = ConfigDict(extra="forbid")

    common: dict[str, Value]
    lines: tuple[Line, ...]


@cache
def shipped() -> tuple[Line, ...]:
    """Return the lines that come with Trillium."""
    return from_json(TABLE.read_text(encoding="utf-8"))


def to_json(lines: Sequence[Line]) -> str:
    """Return lines as text, which `from_json` reads; settings that most of them share stand once."""
    paths = dict.fromkeys(path for line in lines for path in line.settings)
    common = {
        path: Counter(line.settings.get(path) for line in lines).most_common(1)[0][0]
        for path in paths
    }
    rows = [
        {
            **line.model_dump(mode="json", exclude={"own"}),
            "settings": {
                path: line.settings.get(path)
                for path in sorted(paths)
                if not _same(line.settings.get(path), common[path])
            },
        }
        for line in lines
    ]
    written = ",\n".join(json.dumps(row) for row in rows)
    return f'{{"common": {json.dumps(common, sort_keys=True)},\n"lines": [\n{written}\n]}}\n'


def from_json(text: str) -> tuple[Line, ...]:
    """Return lines from text.

    Raises:
        UserError: it holds none, or what cannot be.
    """
    try:
        table = _Table.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"the table of measurements {TABLE.name}",
            f"it is damaged: {'.'.join(map(str, first['loc']))} {first['msg']}".replace(
                ": .", ": "
            ),
            "Install Trillium again",
        ) from error
    return tuple(
        line.model_copy(
            update={
                "settings": {
                    path: value
                    for path, value in {**table.common, **line.settings}.items()
                    if value is not None
                }
            }
        )
        for line in table.lines
    )


def sign_of(measure: str) -> int:
    """Return 1 where more of a measure is better, -1 where less is."""
    return -1 if measure == "loss" else 1


def _same(mine: Value, other: Value) -> bool:
    return mine == other and isinstance(mine, bool) == isinstance(other, bool)
