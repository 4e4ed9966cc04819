"""Time on paper: waves of messages over links and devices, as a simulation of discrete events.

A wave begins when the one before has ended: the server sends its messages, every client computes as
soon as it has received its own and answers, and the server computes once all answers are there.
Through the link of the server goes one message after the other, as they become ready.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from trillium.plan.places import Place
from trillium.plan.waves import Ask, Wave


@dataclass
class Share:
    """How a client spends a round, in seconds."""

    compute: float = 0.0
    wire: float = 0.0
    waiting: float = 0.0


@dataclass
class RoundTime:
    """The course of one round.

    Attributes:
        seconds: from its begin to its end.
        server: of these the server computed so many.
        clients: how each client spent them.
    """

    seconds: float = 0.0
    server: float = 0.0
    clients: dict[str, Share] = field(default_factory=dict)

    @property
    def slowest(self) -> Share:
        """The share of the client that waits least."""
        return min(self.clients.values(), key=lambda share: share.waiting, default=Share())


Compute = Callable[[Ask], float | None]
"""Gives the seconds that a client computes for an ask; `None` where nobody knows."""


def round_time(
    waves: Iterable[Wave],
    places: Mapping[str, Place],
    server: Place,
    compute: Compute | None = None,
) -> RoundTime | None:
    """Return the course of a round in time; `None` where a speed is missing.

    Args:
        waves: the messages of the round.
        places: of the clients, by name.
        server: where the server runs.
        compute: seconds of a client; by its FLOPs and its device where left out.
    """

    def by_device(ask: Ask) -> float | None:
        return _seconds(ask.cost.flops, places[ask.client].device.flops)

    result, known = RoundTime(), {}
    for wave in waves:
        if id(wave) not in known:
            known[id(wave)] = wave, _wave(wave, places, server, compute or by_device)
        found = known[id(wave)][1]
        if found is None:
            return None
        result.seconds += found.seconds
        result.server += found.server
        for name, share in found.clients.items():
            total = result.clients.setdefault(name, Share())
            total.compute += share.compute
            total.wire += share.wire
    for share in result.clients.values():
        share.waiting = max(round(result.seconds - share.compute - share.wire, 9), 0.0)
    return result


def _wave(
    wave: Wave, places: Mapping[str, Place], server: Place, compute: Compute
) -> RoundTime | None:
    free = {"down": 0.0, "up": 0.0}  # when the server's link is free in each direction
    events: list[tuple[float, int, str]] = []  # when, of which ask, and what
    shares = [Share() for _ in wave.asks]
    for index in range(len(wave.asks)):
        heapq.heappush(events, (0.0, index, "send"))
    end = 0.0
    while events:
        now, index, what = heapq.heappop(events)
        ask, share = wave.asks[index], shares[index]
        link = places[ask.client].link
        if what == "compute":
            spent = compute(ask)
            if spent is None:
                return None
            share.compute += spent
            heapq.heappush(events, (now + spent, index, "answer"))
            continue
        down = what == "send"
        weight = ask.down if down else ask.up
        if weight is None:  # no answer comes
            continue
        own = _seconds(8 * weight.bytes, link.down if down else link.up)
        if own is None:
            return None
        way = "down" if down else "up"
        theirs = server.link.up if down else server.link.down
        queue = 8 * weight.bytes / theirs if theirs else 0.0
        start = max(now, free[way]) if theirs else now
        free[way] = start + queue
        arrival = start + max(own, queue) + link.latency + server.link.latency
        share.wire += arrival - now
        if down:
            heapq.heappush(events, (arrival, index, "compute"))
        end = max(end, arrival)
    spent = _seconds(wave.server.flops, server.device.flops)
    if spent is None:
        return None
    clients: dict[str, Share] = {}
    for ask, share in zip(wave.asks, shares, strict=True):
        clients[ask.client] = share
    return RoundTime(end + spent, spent, clients)


def _seconds(amount: float, speed: float | None) -> float | None:
    """Return how long an amount takes; nothing takes no time, even at an unknown speed."""
    if not amount:
        return 0.0
    return None if speed is None else amount / speed
