"""Asks whose answers are awaited one by one, whichever of them was sent when."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from trillium.engines.link import Ask
from trillium.engines.stream import SessionServer
from trillium.federation.parts import Lost

Answer = tuple[str, bytes | Lost]


@dataclass
class _Into:
    """What an answer is put into, so that those of two asks to one client are told apart."""

    number: int
    queue: queue.SimpleQueue[tuple[int, Answer]]

    def put(self, item: Answer) -> None:
        self.queue.put((self.number, item))


@dataclass
class _Flight:
    ask: Ask
    until: float
    why: str


@dataclass
class Flights:
    """Asks that are under way.

    Attributes:
        server: whose clients are asked.
    """

    server: SessionServer
    _open: dict[int, _Flight] = field(default_factory=dict)
    _came: queue.SimpleQueue[tuple[int, Answer]] = field(default_factory=queue.SimpleQueue)
    _count: int = 0

    @property
    def clients(self) -> set[str]:
        """Who is at work, or has answered what nobody has read yet."""
        return {flight.ask.name for flight in self._open.values()}

    def send(self, requests: Mapping[str, bytes], seconds: float, most_bytes: int) -> None:
        """Send asks, each of which may take so long."""
        for name, data in requests.items():
            self._count += 1
            most = min(most_bytes, self.server.config.max_bytes)
            into = _Into(self._count, self._came)
            ask = self.server.submit(name, "message", data, into, most)
            why = f"no reply within {round(seconds, 1):g} s"
            self._open[self._count] = _Flight(ask, time.monotonic() + seconds, why)

    def arrivals(self) -> Iterator[Answer]:
        """Yield the answers as they come, or that one has taken too long, as long as any is due."""
        while self._open:
            number = min(self._open, key=lambda one: self._open[one].until)
            first = self._open[number]
            try:
                number, answer = self._came.get(timeout=max(first.until - time.monotonic(), 0.0))
            except queue.Empty:
                answer = first.ask.name, Lost(first.why, sent=self.server.abandon(first.ask))
            if self._open.pop(number, None) is not None:
                yield answer

    def give_up(self) -> None:
        """Wait for nothing any more."""
        for flight in self._open.values():
            self.server.abandon(flight.ask)
        self._open.clear()
