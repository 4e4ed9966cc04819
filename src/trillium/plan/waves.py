"""What a round is made of: waves of messages, with what clients and server compute for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from trillium.plan.sizes import Weight
from trillium.wire.ledger import Purpose


@dataclass(frozen=True)
class Work:
    """What some work costs: operations."""

    flops: float = 0.0


FREE: Final = Work()
"""Of what computes nothing that is counted."""


@dataclass(frozen=True)
class Memory:
    """What a client holds at the moment when it holds most, in bytes.

    Attributes:
        weights: parameters and buffers, the trained ones included.
        gradients: of the trained parameters.
        optimizer: its state.
        activations: all else: what the forward pass keeps for the backward one, and temporaries.
    """

    weights: float = 0
    gradients: float = 0
    optimizer: float = 0
    activations: float = 0

    @property
    def peak(self) -> float:
        """The sum, which is what the meter of a run shows."""
        return self.weights + self.gradients + self.optimizer + self.activations

    def plus(self, other: Memory, share: float) -> Memory:
        """Return this and a share of another."""
        return Memory(
            self.weights + share * other.weights,
            self.gradients + share * other.gradients,
            self.optimizer + share * other.optimizer,
            self.activations + share * other.activations,
        )

    def rounded(self) -> Memory:
        """Return the same in whole bytes."""
        return Memory(*(round(value) for value in vars(self).values()))


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
    purpose: Purpose = "train"


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
