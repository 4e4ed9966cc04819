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

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

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
    """What one run has measured; bytes and FLOPs are a client's in all rounds.

    Bytes are without what crosses once, as a public set does.

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
    seeds: tuple[Seed, ...] = Field(min_length=1)
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


class _Lines(BaseModel):
    """The lines of a framework in a file; `common` are settings of each that does not have others."""

    model_config = ConfigDict(extra="forbid")

    common: dict[str, Value]
    lines: tuple[Line, ...]


_TABLE: Final = TypeAdapter(dict[str, _Lines])


@cache
def shipped() -> tuple[Line, ...]:
    """Return the lines that come with Trillium."""
    return from_json(TABLE.read_text(encoding="utf-8"))


def to_json(lines: Sequence[Line]) -> str:
    """Return lines as text, which `from_json` reads; settings that most of them share stand once."""
    groups: dict[str, list[Line]] = {}
    for line in lines:
        groups.setdefault(str(line.settings["framework.name"]), []).append(line)
    texts = []
    for name, group in groups.items():
        paths = [path for path in group[0].settings if all(path in one.settings for one in group)]
        common = {
            path: Counter(line.settings[path] for line in group).most_common(1)[0][0]
            for path in paths
        }
        rows = [
            {
                **line.model_dump(mode="json", exclude={"own"}),
                "settings": {
                    path: value
                    for path, value in line.settings.items()
                    if path not in common or repr(value) != repr(common[path])
                },
            }
            for line in group
        ]
        written = ",\n".join(map(json.dumps, rows))
        texts.append(
            f'{json.dumps(name)}: {{"common": {json.dumps(common)},\n"lines": [\n{written}\n]}}'
        )
    return "{" + ",\n".join(texts) + "}\n"


def from_json(text: str) -> tuple[Line, ...]:
    """Return lines from text.

    Raises:
        UserError: it holds what cannot be.
    """
    try:
        table = _TABLE.validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"the table of measurements {TABLE.name}",
            f"it is damaged: {first['msg']} at {'.'.join(map(str, first['loc'])) or 'its start'}",
            "Install Trillium again",
        ) from error
    return tuple(
        line.model_copy(update={"settings": {**group.common, **line.settings}})
        for group in table.values()
        for line in group.lines
    )


def sign_of(measure: str) -> int:
    """Return 1 where more of a measure is better, -1 where less is."""
    return -1 if measure == "loss" else 1
