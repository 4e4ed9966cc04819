"""What a round is made of: waves of messages, with what clients and server compute for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from trillium.plan.sizes import Weight
from trillium.wire.ledger import Purpose


@dataclass(frozen=True)
class Work:
    """What some work costs.

    Attributes:
        flops: operations.
        peaks: most bytes alive at once in each of its parts, in order; of a deep model each part's
            is found for itself.
    """

    flops: float = 0.0
    peaks: tuple[int, ...] = ()

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.peaks + other.peaks)

    @property
    def peak_bytes(self) -> int:
        """The most of any part."""
        return max(self.peaks, default=0)


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

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0

    @property
    def peak(self) -> int:
        """The sum, which is what the meter of a run shows."""
        return self.weights + self.gradients + self.optimizer + self.activations


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
