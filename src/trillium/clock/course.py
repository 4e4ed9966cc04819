"""The course of messages in time, over links and devices, as a simulation of discrete events.

The server sends, every client computes as soon as it has received its own and answers; it takes one
message after the other. Through the link of the server goes one message after the other, as they become
ready.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from trillium.clock.places import Place
from trillium.clock.waves import Ask


@dataclass
class Share:
    """How a client spends a round, in seconds."""

    compute: float = 0.0
    wire: float = 0.0
    waiting: float = 0.0


Compute = Callable[[Ask], float | None]
"""Gives the seconds that a client computes for an ask; `None` where nobody knows."""


@dataclass
class Course:
    """Messages on their way, and when they arrive.

    Attributes:
        places: of the clients, by name.
        server: where the server runs.
        compute: seconds of a client.
        now: where the server is in time.
        free: from when the server's link is, by direction.
        idle: from when a client is, by name.
        events: those that are to come: when, of which ask, what.
        asks: by number.
        ends: when their answers arrive, as far as that is known.
        count: how many were asked.
        shares: how clients spend the time.
    """

    places: Mapping[str, Place]
    server: Place
    compute: Compute
    now: float = 0.0
    free: dict[str, float] = field(default_factory=lambda: {"down": 0.0, "up": 0.0})
    idle: dict[str, float] = field(default_factory=dict)
    events: list[tuple[float, int, str]] = field(default_factory=list)
    asks: dict[int, Ask] = field(default_factory=dict)
    ends: dict[int, float] = field(default_factory=dict)
    count: int = 0
    shares: dict[str, Share] = field(default_factory=dict)

    def send(self, asks: Sequence[Ask]) -> list[int]:
        """Let messages begin now; return their numbers."""
        asked = list(range(self.count, self.count + len(asks)))
        self.count += len(asks)
        for number, ask in zip(asked, asks, strict=True):
            self.asks[number] = ask
            self.shares.setdefault(ask.client, Share())
            heapq.heappush(self.events, (self.now, number, "send"))
        return asked

    def ended(
        self, asked: Collection[int], most: int | None = None, until: float = math.inf
    ) -> list[int] | None:
        """Go on until some of these asks have ended, and return which, in the order of their ends.

        Args:
            most: how many are awaited; all without it.
            until: when it is over anyhow.

        Returns:
            `None` where a speed is missing.
        """
        most = len(asked) if most is None else min(most, len(asked))
        open_ = {number for number in asked if number not in self.ends}
        known = [(self.ends[number], number) for number in asked if number in self.ends]
        heapq.heapify(known)
        found: list[int] = []
        while len(found) < most:
            # What is still to come ends no earlier than the event that leads to it.
            coming = self.events[0][0] if open_ and self.events else math.inf
            if known and known[0][0] <= min(coming, until):
                found.append(heapq.heappop(known)[1])
            elif coming >= until:
                assert until < math.inf, "what is awaited was never asked"
                self.now = max(self.now, until)
                break
            else:
                _, number, _ = event = heapq.heappop(self.events)
                if not self._step(*event):
                    return None
                if number in self.ends and number in open_:
                    open_.discard(number)
                    heapq.heappush(known, (self.ends[number], number))
        for number in found:
            self.now = max(self.now, self.ends.pop(number))
            del self.asks[number]
        return found

    def _step(self, now: float, number: int, what: str) -> bool:
        """Let one event happen; return whether its speed is known."""
        ask = self.asks[number]
        share, link = self.shares[ask.client], self.places[ask.client].link
        if what == "compute":
            took = self.compute(ask)
            if took is None:
                return False
            share.compute += took
            # A client takes one message after the other.
            done = max(now, self.idle.get(ask.client, 0.0)) + took
            self.idle[ask.client] = done
            heapq.heappush(self.events, (done, number, "answer"))
            return True
        down = what == "send"
        weight = ask.down if down else ask.up
        if weight is None:  # no answer comes
            self.ends[number] = now
            return True
        own = spent(8 * weight.bytes, link.down if down else link.up)
        if own is None:
            return False
        way = "down" if down else "up"
        theirs = self.server.link.up if down else self.server.link.down
        queue = 8 * weight.bytes / theirs if theirs else 0.0
        start = max(now, self.free[way]) if theirs else now
        self.free[way] = start + queue
        arrival = start + max(own, queue) + link.latency + self.server.link.latency
        share.wire += arrival - now
        if down:
            heapq.heappush(self.events, (arrival, number, "compute"))
        else:
            self.ends[number] = arrival
        return True


def spent(amount: float, speed: float | None) -> float | None:
    """Return how long an amount takes; nothing takes no time, even at an unknown speed."""
    if not amount:
        return 0.0
    return None if speed is None else amount / speed
