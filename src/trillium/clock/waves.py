"""What a round is made of: waves of messages, with what clients and server compute for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Weight:
    """What one message weighs.

    Attributes:
        bytes: its length.
        kinds: the same by kind of tensor, as in the ledger.
        low, high: the range of `bytes` where codecs depend on values; else the same.
    """

    bytes: int
    kinds: Mapping[str, int]
    low: int
    high: int

    @classmethod
    def sum(cls, weights: Sequence[float], parts: Sequence[Weight]) -> Weight:
        """Return so much of each, together."""
        pairs = list(zip(weights, parts, strict=True))
        names = sorted({kind for part in parts for kind in part.kinds})
        return cls(
            round(sum(weight * part.bytes for weight, part in pairs)),
            {k: round(sum(weight * part.kinds.get(k, 0) for weight, part in pairs)) for k in names},
            round(sum(weight * part.low for weight, part in pairs)),
            round(sum(weight * part.high for weight, part in pairs)),
        )


NOTHING = Weight(0, {}, 0, 0)


@dataclass(frozen=True)
class Work:
    """What some work costs: operations."""

    flops: float = 0.0


FREE: Final = Work()
"""Of what computes nothing that is counted."""


@dataclass(frozen=True)
class Ask:
    """One message to a client and its reply.

    Attributes:
        client: who is asked.
        verb: for what.
        down: what the message weighs.
        up: what the reply weighs; `None` where none comes.
        cost: what the client computes for it; seconds are not known here.
        purpose: as in the ledger.
    """

    client: str
    verb: str
    down: Weight
    up: Weight | None
    cost: Work = FREE
    purpose: str = "train"


@dataclass(frozen=True)
class Wave:
    """Messages that go out together, and what the server computes once all replies are there.

    Attributes:
        asks: the messages.
        server: what the server computes.
        posted: whether the server goes on while the clients work; a later wave collects the replies.
        collects: whether the server first awaits the replies to the oldest wave that was posted.
    """

    asks: tuple[Ask, ...]
    server: Work = FREE
    posted: bool = False
    collects: bool = False
