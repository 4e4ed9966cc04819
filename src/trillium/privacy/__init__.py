"""What hides the data of a client from those who see what it has sent.

A guarantee is a pair of halves: a client's bounds what it sends, or adds noise to it; a server's adds
up, and adds noise to the sum. Both halves are in one file.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from trillium.component import Component
from trillium.errors import UserError
from trillium.privacy.noise import LEAST
from trillium.wire.message import Message


class Privacy(Component, kind="privacy", package="trillium.privacy"):
    """Whose presence in a run is hidden, and from whom.

    Class variables:
        unit: of what one more or less is hidden; nothing by default.
        adversary: who may see all that the guarantee is about.
        uncounted: what the guarantee does not speak of.
    """

    unit: ClassVar[str] = ""
    adversary: ClassVar[str] = ""
    uncounted: ClassVar[str] = ""

    def closed(self, reply: Message, request: Message) -> Message:
        """Return a client's reply as it leaves."""
        return reply.opened()


class Guarantee(Privacy):
    """Differential privacy of a unit: (epsilon, delta), for one of them more or less.

    Attributes:
        epsilon: what the whole run may spend; the noise follows from it.
        noise: standard deviation of the noise over the bound of a unit; instead of `epsilon`, which
            then follows from it.
        delta: with what probability the guarantee may fail; far less than one over the units.
    """

    epsilon: float | None = Field(default=None, gt=0, le=100)
    noise: float | None = Field(default=None, ge=0)
    delta: float = Field(default=1e-5, gt=0, lt=1)

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.epsilon is None) == (self.noise is None):
            given = "neither" if self.noise is None else "both"
            raise UserError(
                f"privacy={self.name} with {given} of epsilon and noise",
                "each of them follows from the other",
                f"Write privacy={{name: {self.name}, epsilon: 8}}, or noise in its place",
            )
        if self.noise is not None and 0 < self.noise < LEAST:
            raise UserError(
                f"noise={self.noise:g}",
                "so little hides nothing, and its grid is finer than 64 bits hold",
                f"Write 0, or {LEAST:g} or more",
            )
        return self


def listed(reply: Message, setting: str) -> dict[str, Any]:
    """Return the tensors that may leave: those that are added up, and nothing beside them.

    Raises:
        UserError: there is something else in a reply.
    """
    if reply.tensors or reply.encoded:
        names = sorted({*reply.tensors, *reply.encoded})
        raise UserError(
            f"a reply to {reply.verb} with {names[:3]} under {setting}",
            "only what is added up may leave a client in such a run",
            "Leave out what asks for it",
        )
    return {} if reply.summed is None else reply.summed.added()


class NoPrivacy(Privacy, name="none"):
    """Nothing is hidden: the server sees what each client sends."""
