"""Sums over clients: what is only ever added up is said to be so, and then need not be seen alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from trillium.privacy.sums import Shares
from trillium.wire.addend import Addend
from trillium.wire.kinds import Kind, Tensors
from trillium.wire.message import Message, named

T = TypeVar("T")
Read = Callable[[Message], T] | Mapping[str, Callable[[Message], T]]
"""What checks a reply and takes from it what is wanted: one for all, or one for each client."""


@dataclass(frozen=True)
class Whole:
    """A sum over all data at once, and not over a cohort or a batch.

    Attributes:
        bound: of the l2 norm of what one client adds; what one example adds has the norm 1.
        noise: over the bound, in units of the noise of a round or a step.
    """

    bound: float
    noise: float


@dataclass(frozen=True)
class Noisy:
    """Noise that clients add to what is masked.

    Attributes:
        bound: of the l2 norm of what one client adds.
        shares: how much noise each of them adds.
    """

    bound: float
    shares: Shares


@dataclass(frozen=True)
class Form:
    """What an addend is to be like.

    Attributes:
        like: its tensors by kind, and by the name behind it.
        figures: its numbers beside the weight.
        replaces: whether its parameters take the place of `like`, and do not change it.
        unpack: reads what is added up where it crosses in the open in another form.
        reach: the largest absolute value of an entry, where that is known before.
        whole: what is so of it where it is a sum over all data.
    """

    like: Mapping[Kind, Tensors]
    figures: tuple[str, ...] = ()
    replaces: bool = False
    unpack: Callable[[Message], Addend] | None = None
    reach: float | None = None
    whole: Whole | None = None

    @property
    def tensors(self) -> Tensors:
        """The tensors that it is like, by kind and name."""
        return {k: t for kind, like in self.like.items() for k, t in named(kind, like).items()}

    def read(self, reply: Message) -> Addend:
        """Return what one client has sent in the open; `MessageError` if it is not of this form."""
        found = Addend(self._near(reply)) if self.unpack is None else self.unpack(reply)
        figures = {name: reply.scalar(f"control/{name}") for name in self.figures}
        return replace(found, weight=reply.positive("control/weight"), figures=figures)

    def closed(self, reply: Message) -> Addend:
        """Return what one client has sent in a private run: the tensors, and nothing beside them."""
        return Addend(self._near(reply))

    def _near(self, reply: Message) -> Tensors:
        found: Tensors = {}
        for kind, like in self.like.items():
            if kind == "control":
                found |= {
                    f"control/{n}": reply.tensor(f"control/{n}", t.dtype, tuple(t.shape))
                    for n, t in like.items()
                }
                continue
            replaces = self.replaces and kind == "parameters"
            found |= named(kind, reply.near(kind, like, replaces=replaces))
        return found


class Ask(Protocol):
    """How clients are asked."""

    def __call__(self, requests: Mapping[str, Message], read: Read[T]) -> Iterator[tuple[str, T]]:
        """Do as `Fleet.ask` does."""


class Summing(Protocol):
    """What adds up so that no client is seen alone.

    Attributes:
        told: of the last sum, for the measures of its round.
    """

    told: dict[str, Any]

    def total(
        self,
        requests: Mapping[str, Message],
        form: Form,
        ask: Ask,
        seen: Callable[[Message], bytes],
        need: int,
        newcomers: Collection[str],
        noisy: Noisy | None = None,
    ) -> Addend:
        """Return the mean over the clients that have answered.

        Args:
            noisy: the noise that clients add, if they do.
            seen: returns the digest of a message as it crosses.
            need: how many clients are to stay.
            newcomers: who holds nothing of earlier rounds.
        """


def mean_loss(addends: Mapping[str, Addend]) -> dict[str, float]:
    """Return the weighted mean of the losses by client as a measure; none where they are not told.

    Summed in the order of the names, because sums of floats depend on it, and replies come in any.
    """
    told = [addend for _, addend in sorted(addends.items()) if "loss" in addend.figures]
    total = sum(addend.weight for addend in told)
    losses = sum(addend.weight * addend.figures["loss"] for addend in told)
    return {"train_loss": losses / total} if told else {}
