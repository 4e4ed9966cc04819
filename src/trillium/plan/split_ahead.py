"""A cut model with `staleness=1` on paper: clients run their next batch while the server works."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from trillium.federation.client import Client
from trillium.plan.federation import Chunk
from trillium.plan.split_batches import Batches
from trillium.plan.waves import FREE, Ask, Wave, Work

Turn = Mapping[str, tuple[Client, Chunk]]
"""The batches that the server takes together, by client."""


@dataclass
class Ahead:
    """One session of a split whose server asks for the next batches before it takes these.

    Attributes:
        batches: what they weigh and cost.
        known: waves by all that they depend on.
    """

    batches: Batches
    known: dict[Hashable, Any]
    _waiting: Turn | None = None
    _pending: dict[str, list[Chunk]] = field(
        default_factory=dict
    )  # at each client, the oldest first
    _due: set[str] = field(default_factory=set)  # clients that have not been told their last step

    def turn(self, turn: Turn) -> Iterator[Wave]:
        """Return the messages until the batches of a turn are on their way."""
        yield self._wave("forward", turn, posted=True)
        self._due -= turn.keys()
        for name, (_, chunk) in turn.items():
            self._pending.setdefault(name, []).append(chunk)
        yield from self.rest()
        self._waiting = turn

    def rest(self) -> Iterator[Wave]:
        """Return the messages for the batches that the server has not taken yet."""
        if self._waiting is None:
            return
        turn, self._waiting = self._waiting, None
        for name in turn:
            self._pending[name].pop(0)
        (_, work), *verbs = self.batches.served([chunk for _, chunk in turn.values()])
        yield self._collected(turn, work)
        for verb, server in verbs:
            yield self._wave(verb, turn, server)
            self._due -= turn.keys()
        self._due |= turn.keys()

    def _collected(self, turn: Turn, work: Work) -> Wave:
        """Return the end of a wave that was posted: its replies, and the server's work on them."""
        key = ("collected", *((name, id(chunk)) for name, (_, chunk) in turn.items()))
        if key not in self.known:
            self.known[key] = Wave((), work, collects=True)
        found: Wave = self.known[key]
        return found

    def _wave(self, verb: str, turn: Turn, server: Work = FREE, *, posted: bool = False) -> Wave:
        """Return the messages of one verb to the clients of a turn."""
        others = {name: self._other(name) for name in turn}
        late = frozenset() if posted else self._due & turn.keys()
        self.batches.stepped |= self._due & turn.keys()
        first = turn.keys() - self.batches.stepped
        parts = (
            (name, id(turn[name][1]), id(others[name]), name in late, name in first)
            for name in turn
        )
        key = (verb, len(str(self.batches.federation.server.round)), *parts)
        if key not in self.known:
            asks = []
            for name, batch in turn.items():
                down, up = self.batches.weights(*batch, late=name in late)[verb]
                cost = self.batches.costs(*batch, others[name], first=name in first).get(verb, FREE)
                asks.append(Ask(name, verb, down, up, cost))
            self.known[key] = Wave(tuple(asks), server, posted)
        found: Wave = self.known[key]
        return found

    def _other(self, name: str) -> Chunk | None:
        """Return the batch that is under way at a client beside the one that is worked on."""
        return next(iter(self._pending.get(name, [])), None) if self.batches.waits else None
