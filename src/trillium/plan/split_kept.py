"""Batches on paper of a cut model whose server keeps activations: they cross no more."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from trillium.federation.client import Client
from trillium.plan.federation import Chunk
from trillium.plan.split_batches import Batches
from trillium.plan.split_cached import CachedRounds
from trillium.plan.waves import FREE, Ask, Wave

Turn = Mapping[str, tuple[Client, Chunk]]
"""The batches that the server takes together, by client."""


@dataclass
class Kept:
    """One session of a split with activations that the server has.

    Attributes:
        batches: what they weigh and cost.
        cached: what the blocks cost that a client lacks.
        known: waves by all that they depend on.
    """

    batches: Batches
    cached: CachedRounds
    known: dict[Hashable, Any]
    _due: set[str] = field(default_factory=set)  # clients with a step to take

    def turn(self, turn: Turn) -> list[Wave]:
        """Return the server's work on the batches of a turn, and what ends them at the clients."""
        late = frozenset(self._due & turn.keys())
        first = frozenset(turn.keys() - self.batches.stepped)
        self.batches.stepped |= first
        parts = ((n, id(chunk), n in late, n in first) for n, (_, chunk) in turn.items())
        key = ("kept", len(str(self.batches.federation.server.round)), *parts)
        if key not in self.known:
            self.known[key] = list(self._waves(turn, late, first))
        self._due |= turn.keys()
        found: list[Wave] = self.known[key]
        return found

    def _waves(self, turn: Turn, late: frozenset[str], first: frozenset[str]) -> Iterator[Wave]:
        (_, work), *verbs = self.batches.served([chunk for _, chunk in turn.values()])
        for client, chunk in turn.values():
            source = client.tier.cut or self.batches.framework.cut
            work = self.cached.middle(source, chunk) + work
        yield Wave((), work)
        for verb, server in verbs:
            asks = []
            for name, batch in turn.items():
                down, up = self.batches.weights(*batch, late=name in late, kept=True)[verb]
                costs = self.batches.costs(*batch, first=name in first)
                cost = costs.get(verb, FREE) + costs.get("step", FREE)
                asks.append(Ask(name, verb, down, up, cost))
            yield Wave(tuple(asks), server)
