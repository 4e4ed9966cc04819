"""Sums over clients: what is only ever added up is said to be so, and then need not be seen alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from trillium.wire.addend import Addend
from trillium.wire.kinds import Kind, Tensors
from trillium.wire.message import Message, named


@dataclass(frozen=True)
class Form:
    """What an addend is to be like.

    Attributes:
        like: its tensors by kind, and by the name behind it.
        figures: its numbers beside the weight.
        replaces: whether its parameters take the place of `like`, and do not change it.
        unpack: reads the tensors where they cross in a shorter form.
    """

    like: Mapping[Kind, Tensors]
    figures: tuple[str, ...] = ()
    replaces: bool = False
    unpack: Callable[[Message], Tensors] | None = None

    def read(self, reply: Message) -> Addend:
        """Return what one client has sent in the open; `MessageError` if it is not of this form."""
        found: Tensors = {}
        if self.unpack is not None:
            found = self.unpack(reply)
        else:
            for kind, like in self.like.items():
                replaces = self.replaces and kind == "parameters"
                found |= named(kind, reply.near(kind, like, replaces=replaces))
        figures = {name: reply.scalar(f"control/{name}") for name in self.figures}
        return Addend(found, reply.positive("control/weight"), figures)
