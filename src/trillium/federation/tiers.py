"""Tiers: clients that differ from the others in size, speed or link, and what they do differently."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from trillium.component import Choice
from trillium.models.adapters import Adapter
from trillium.models.base import ModelConfig
from trillium.training.settings import Training
from trillium.wire.codecs import Codec
from trillium.wire.wire import Wire

T = TypeVar("T")


class Link(BaseModel):
    """The network between a client and the server.

    Attributes:
        up, down: bits per second; unknown by default.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    up: float | None = Field(default=None, gt=0)
    down: float | None = Field(default=None, gt=0)


class OwnModel(BaseModel):
    """A model that only a part of the federation has; for frameworks that exchange no parameters.

    Attributes:
        model, adapter: keys that are left out are those of the run, and so is a section that is
            left out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelConfig | None = None
    adapter: Choice[Adapter] | None = None

    @property
    def differs(self) -> bool:
        """Whether there is anything in it."""
        return self.model is not None or self.adapter is not None


class Tier(OwnModel):
    """What some clients do differently; what is left out is as for all clients.

    Attributes:
        clients: their names, or patterns of names such as `client-1*`; the first tier that matches
            counts.
        rank: LoRA rank of these clients, at most the adapter's; they hold the first components. The
            scale stays that of the adapter, so a slice of the factors is a slice of the change.
        layers: indices of the blocks whose adapters these clients hold and train; all others stay at
            their start values for them.
        local_steps: optimiser steps in one round.
        cut: how many blocks these clients run in a split whose activations are sent once; the server
            runs those up to `framework.cut`.
        up, down: codecs, as in `wire`.
        link: the speed of their network; codecs such as `adaptive` use it.
        model, adapter: their own, if they have one; keys that are left out
            are those of the run. For frameworks that exchange no parameters.
    """

    clients: tuple[str, ...] = ()
    rank: int | None = Field(default=None, ge=1)
    layers: tuple[int, ...] | None = None
    local_steps: int | None = Field(default=None, ge=1)
    cut: int | None = Field(default=None, ge=1)
    up: tuple[Choice[Codec], ...] | None = None
    down: tuple[Choice[Codec], ...] | None = None
    link: Link = Link()

    def wire(self, common: Wire) -> Wire:
        """Return the wire of these clients, made of the run's."""
        own = Wire(
            up=common.up if self.up is None else self.up,
            down=common.down if self.down is None else self.down,
        )
        return own.fit(self.link.up, self.link.down)

    def training(self, common: Training) -> Training:
        """Return how these clients train, made of how all do."""
        changes: dict[str, Any] = (
            {} if self.local_steps is None else {"local_steps": self.local_steps}
        )
        return common.model_copy(update=changes)


COMMON: Final = Tier()
"""What clients do that no tier names: the same as all."""


def tier_of(tiers: Mapping[str, Tier], client: str) -> Tier:
    """Return the tier of a client: the first that names it, or `COMMON`."""
    for tier in tiers.values():
        if any(fnmatchcase(client, pattern) for pattern in tier.clients):
            return tier
    return COMMON


class ByClient(dict[str, T]):
    """Something for each client, also for one that comes when the run has begun."""

    def __init__(self, make: Callable[[str], T], clients: Iterable[str]) -> None:
        super().__init__((client, make(client)) for client in clients)
        self._make = make

    def __missing__(self, client: str) -> T:
        """Make it when it is first asked for."""
        self[client] = found = self._make(client)
        return found
