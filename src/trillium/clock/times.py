"""Time on paper: waves of messages over links and devices, as a simulation of discrete events.

A wave begins when the one before has ended: the server sends its messages, every client computes as
soon as it has received its own and answers, and the server computes once all answers are there. A wave
that is posted lets the server go on meanwhile; a client takes one message after the other.
Through the link of the server goes one message after the other, as they become ready.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from trillium.clock.places import Place
from trillium.clock.waves import Ask, Wave


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
        compute: seconds of a client; by its FLOPs and its device by default.
    """

    def by_device(ask: Ask) -> float | None:
        return _seconds(ask.cost.flops, places[ask.client].device.flops)

    result, known = RoundTime(), {}
    for group in _groups(waves):
        key = tuple(map(id, group))
        if key not in known:
            course = _Course(places, server, compute or by_device)
            known[key] = group, course.run(group)
        found = known[key][1]
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


def course_time(
    courses: Iterable[tuple[float, Iterable[Wave]]], places: Mapping[str, Place], server: Place
) -> RoundTime | None:
    """Return the course of a round that is a weighted sum of others; `None` without all speeds."""
    total, known = RoundTime(), list[set[str]]()
    for weight, waves in courses:
        found = round_time(waves, places, server)
        if found is None:
            return None
        total.seconds += weight * found.seconds
        total.server += weight * found.server
        for name, share in found.clients.items():
            own = total.clients.setdefault(name, Share())
            own.compute += weight * share.compute
            own.wire += weight * share.wire
        known.append({*found.clients})
    # Who is not in all of them stands for another one in a smaller federation.
    names = set.intersection(*known) if known else set()
    total.clients = {name: own for name, own in total.clients.items() if name in names}
    for share in total.clients.values():
        share.waiting = max(round(total.seconds - share.compute - share.wire, 9), 0.0)
    return total


def _groups(waves: Iterable[Wave]) -> Iterator[list[Wave]]:
    """Yield waves that depend on each other: at the end of each group nothing is on its way."""
    group: list[Wave] = []
    under_way = 0
    for wave in waves:
        group.append(wave)
        under_way += wave.posted - wave.collects
        if not under_way:
            yield group
            group = []
    if group:
        yield group


@dataclass
class _Course:
    """A simulation of waves, one after the other or overlapping.

    Attributes:
        places, server, compute: as `round_time`.
    """

    places: Mapping[str, Place]
    server: Place
    compute: Compute
    _now: float = 0.0  # where the server is in time
    _free: dict[str, float] = field(default_factory=lambda: {"down": 0.0, "up": 0.0})  # its link
    _idle: dict[str, float] = field(default_factory=dict)  # from when a client is, by name
    _events: list[tuple[float, int, str]] = field(default_factory=list)  # when, of which ask, what
    _asks: list[Ask] = field(default_factory=list)
    _ends: list[float | None] = field(default_factory=list)  # of each ask; `None` while it lasts
    _shares: dict[str, Share] = field(default_factory=dict)

    def run(self, waves: Sequence[Wave]) -> RoundTime | None:
        """Return the course of some waves; `None` where a speed is missing."""
        total, posted = 0.0, deque[range]()
        for wave in waves:
            if wave.collects and not self._await(posted.popleft()):
                return None
            asked = self._send(wave)
            if wave.posted:
                posted.append(asked)
            elif not self._await(asked):
                return None
            spent = _seconds(wave.server.flops, self.server.device.flops)
            if spent is None:
                return None
            self._now += spent
            total += spent
        return RoundTime(self._now, total, self._shares)

    def _send(self, wave: Wave) -> range:
        """Let the messages of a wave begin; return the places of its asks."""
        first = len(self._asks)
        self._asks += wave.asks
        self._ends += [None] * len(wave.asks)
        asked = range(first, len(self._asks))
        for index in asked:
            self._shares.setdefault(self._asks[index].client, Share())
            heapq.heappush(self._events, (self._now, index, "send"))
        return asked

    def _await(self, asked: range) -> bool:
        """Go on until these asks have ended; return whether all speeds are known."""
        while any(self._ends[index] is None for index in asked):
            if not self._step(*heapq.heappop(self._events)):
                return False
        ends = [self._ends[index] or 0.0 for index in asked]
        self._now = max([self._now, *ends])
        return True

    def _step(self, now: float, index: int, what: str) -> bool:
        """Let one event happen; return whether its speed is known."""
        ask = self._asks[index]
        share, link = self._shares[ask.client], self.places[ask.client].link
        if what == "compute":
            spent = self.compute(ask)
            if spent is None:
                return False
            share.compute += spent
            # A client takes one message after the other.
            done = max(now, self._idle.get(ask.client, 0.0)) + spent
            self._idle[ask.client] = done
            heapq.heappush(self._events, (done, index, "answer"))
            return True
        down = what == "send"
        weight = ask.down if down else ask.up
        if weight is None:  # no answer comes
            self._ends[index] = now
            return True
        own = _seconds(8 * weight.bytes, link.down if down else link.up)
        if own is None:
            return False
        way = "down" if down else "up"
        theirs = self.server.link.up if down else self.server.link.down
        queue = 8 * weight.bytes / theirs if theirs else 0.0
        start = max(now, self._free[way]) if theirs else now
        self._free[way] = start + queue
        arrival = start + max(own, queue) + link.latency + self.server.link.latency
        share.wire += arrival - now
        if down:
            heapq.heappush(self._events, (arrival, index, "compute"))
        else:
            self._ends[index] = arrival
        return True


def _seconds(amount: float, speed: float | None) -> float | None:
    """Return how long an amount takes; nothing takes no time, even at an unknown speed."""
    if not amount:
        return 0.0
    return None if speed is None else amount / speed
