"""What a server tells a node at the beginning, and what the node says then: both as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from trillium.config.texts import COUNTED

RUN: Final = re.compile(r"[\w.-]{1,200}")


@dataclass(frozen=True)
class Opening:
    """What the server tells a node at the beginning.

    Attributes:
        number: the last complete round.
        signature: of the recipe, if somebody has signed it (`trillium keys recipe`).
    """

    run: str
    tree: Mapping[str, Any]
    labels: Sequence[str]
    number: int
    signature: str = ""

    def encode(self) -> str:
        """Return it as JSON."""
        return json.dumps(vars(self), sort_keys=True)

    @classmethod
    def decode(cls, text: str) -> Opening:
        """Check what came from the server; `ValueError` if it is no opening."""
        content = json.loads(text)
        found = cls(**content)
        labels_fit = isinstance(found.labels, list) and all(
            isinstance(label, str) for label in found.labels
        )
        if not (
            isinstance(found.run, str)
            and RUN.fullmatch(found.run)
            and found.run.strip(".")
            and isinstance(found.tree, dict)
            and labels_fit
            and type(found.number) is int
            and isinstance(found.signature, str)
        ):
            raise ValueError("the server's opening is malformed")
        return found


@dataclass(frozen=True)
class Arrival:
    """What a node says when it has gone back to where the run is.

    Attributes:
        round: the round that what it holds is of; `None` if it holds nothing.
        counts: its texts: how many, how many of them are cut, how many are left out.
    """

    round: int | None
    counts: Mapping[str, int]

    def encode(self) -> str:
        """Return it as JSON."""
        return json.dumps(vars(self))

    @classmethod
    def decode(cls, text: str | bytes) -> Arrival:
        """Check what came from a node; `ValueError` if it is no arrival."""
        content = json.loads(text)
        if not isinstance(content, dict) or {*content} != {"round", "counts"}:
            raise ValueError("the node's arrival is malformed")
        number, counts = read_round(content["round"]), content["counts"]
        if not isinstance(counts, dict) or not {*counts} <= COUNTED:
            raise ValueError("the node's arrival is malformed")
        if not all(type(count) is int and 0 <= count < 2**53 for count in counts.values()):
            raise ValueError("the node's counts are malformed")
        return cls(number, counts)


def read_round(value: object) -> int | None:
    """Return what a node says that its state is of, a round or nothing, or raise `ValueError`."""
    if value is None or (type(value) is int and 0 <= value < 2**31):
        return value
    raise ValueError("the round of the node's state is malformed")
