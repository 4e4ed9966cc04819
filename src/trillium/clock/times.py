"""Time on paper: how long waves of messages take over links and devices.

A wave begins when the one before has ended, and the server computes once all answers are there. A wave
that is posted lets the server go on meanwhile.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from trillium.clock.course import Compute, Course, Share, spent
from trillium.clock.places import Place
from trillium.clock.waves import Ask, Wave


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


def round_time(
    waves: Iterable[Wave],
    places: Mapping[str, Place],
    server: Place,
    compute: Compute | None = None,
) -> RoundTime | None:
    """Return the course of a round in time; `None` where a speed is missing.

    Args:
        places: of the clients, by name.
        compute: seconds of a client; by its FLOPs and its device by default.
    """

    def by_device(ask: Ask) -> float | None:
        return spent(ask.cost.flops, places[ask.client].device.flops)

    result, known = RoundTime(), {}
    for group in _groups(waves):
        key = tuple(map(id, group))
        if key not in known:
            known[key] = group, _run(Course(places, server, compute or by_device), group)
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


def _run(course: Course, waves: Sequence[Wave]) -> RoundTime | None:
    """Return the course of some waves; `None` where a speed is missing."""
    total, posted = 0.0, deque[list[int]]()
    for wave in waves:
        if wave.collects and course.ended(posted.popleft()) is None:
            return None
        asked = course.send(wave.asks)
        if wave.posted:
            posted.append(asked)
        elif course.ended(asked) is None:
            return None
        computed = spent(wave.server.flops, course.server.device.flops)
        if computed is None:
            return None
        course.now += computed
        total += computed
    return RoundTime(course.now, total, course.shares)
