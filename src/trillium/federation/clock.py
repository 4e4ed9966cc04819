"""When the answers of simulated clients arrive: by the clock of plans, over the run's `plan`.

The clients of a simulation answer at once. What they have computed and what crosses says when the
answer would be there, and so who is first, and who is still at work when the next round begins.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from trillium.clock.course import Course, Share, spent
from trillium.clock.places import Place
from trillium.clock.waves import Ask, Weight, Work
from trillium.errors import UserError
from trillium.federation.parts import Lost
from trillium.federation.setting import Setting
from trillium.federation.tiers import tier_of


@dataclass
class _Open:
    """An answer that has not arrived.

    Attributes:
        until: when it is waited for no longer.
        reply: itself.
        wanted: whether it is waited for.
    """

    client: str
    until: float
    reply: bytes | Lost
    wanted: bool = True


@dataclass
class Clock:
    """Simulated time.

    Attributes:
        course: of the messages.
        computed: gives the FLOPs of the server so far.
        worked: gives the FLOPs that an answer of a client took it, as it says.
        deadline: seconds that an ask may take.
    """

    course: Course
    computed: Callable[[], float]
    worked: Callable[[str, bytes], float]
    deadline: float = math.inf
    _before: float = 0.0
    _open: dict[int, _Open] = field(default_factory=dict)
    _late: list[tuple[str, bytes]] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """How long the run has taken, with what the server has computed since the last answer."""
        flops, speed = self.computed(), self.course.server.device.flops
        self.course.now += 0.0 if speed is None else (flops - self._before) / speed
        self._before = flops
        return self.course.now

    @property
    def late(self) -> set[str]:
        """Who is at work on an ask that was given up, and would hear no other."""
        self._come(until=self.seconds)
        return {own.client for own in self._open.values() if not own.wanted}

    def wait(self, most: int) -> None:
        """Let time pass until so many more of those who are late have answered."""
        self._come(most)

    def _come(self, most: int | None = None, until: float = math.inf) -> None:
        """Take note of answers that nobody waits for any more."""
        given_up = {number for number, own in self._open.items() if not own.wanted}
        for number in self.course.ended(given_up, most, until) or ():
            own = self._open.pop(number)
            self._late += [] if isinstance(own.reply, Lost) else [(own.client, own.reply)]

    def take_late(self) -> list[tuple[str, bytes]]:
        """Return who has answered too late since the last time, and what."""
        self._come(until=self.seconds)
        found, self._late = self._late, []
        return found

    def send(
        self, requests: Mapping[str, bytes], replies: Iterable[tuple[str, bytes | Lost]]
    ) -> list[int]:
        """Let clients begin now with what they are asked; return the numbers of these asks."""
        now, answers, asks, opened = self.seconds, dict(replies), [], []
        for client, data in requests.items():
            reply = answers.get(client, Lost("no reply"))
            opened.append(_Open(client, now + self.deadline, reply))
            up, flops = None, 0.0
            if not isinstance(reply, Lost):
                up, flops = _weight(len(reply)), self.worked(client, reply)
            asks.append(Ask(client, "", _weight(len(data)), up, Work(flops)))
        numbers = self.course.send(asks)
        self._open |= dict(zip(numbers, opened, strict=True))
        return numbers

    def arrivals(
        self, numbers: Collection[int] | None = None
    ) -> Iterator[tuple[str, bytes | Lost]]:
        """Yield what is answered, in the order of time, or that it has taken too long.

        Args:
            numbers: of asks; all that are under way without them.
        """
        waiting = {*(self._open if numbers is None else numbers)}
        waiting = {number for number in waiting if self._open[number].wanted}
        while waiting:
            until = min(self._open[number].until for number in waiting)
            found = self.course.ended(waiting, 1, until)
            assert found is not None, "a speed is missing"
            over = sorted(number for number in waiting if self._open[number].until == until)
            for number in found or over:
                waiting.discard(number)
                own = self._open[number]
                if found:
                    yield own.client, self._open.pop(number).reply
                else:
                    own.wanted = False
                    yield own.client, Lost(f"no reply within {self.deadline:g} s")

    def give_up(self) -> None:
        """Wait no longer for what is under way; those clients go on with their work."""
        for own in self._open.values():
            own.wanted = False

    def dump(self) -> dict[str, Any]:
        """Return all of it as tensors and plain values."""
        course, asks = self.course, {}
        for number, ask in course.asks.items():
            up = None if ask.up is None else ask.up.bytes
            asks[number] = [ask.client, ask.down.bytes, up, ask.cost.flops]
        opened = {n: [o.client, o.until, _kept(o.reply), o.wanted] for n, o in self._open.items()}
        return {
            "times": [course.now, course.count, self._before],
            "free": course.free,
            "idle": course.idle,
            "events": [list(event) for event in course.events],
            "ends": course.ends,
            "asks": asks,
            "open": opened,
            "late": [[client, _kept(reply)] for client, reply in self._late],
        }

    def load(self, content: Mapping[str, Any]) -> None:
        """Go on from what `dump` returned."""
        course = self.course
        course.now, course.count, self._before = content["times"]
        course.free, course.idle = content["free"], content["idle"]
        course.events = [(when, number, what) for when, number, what in content["events"]]
        course.ends, course.asks = content["ends"], {}
        for number, (client, down, up, flops) in content["asks"].items():
            weight = None if up is None else _weight(up)
            course.asks[number] = Ask(client, "", _weight(down), weight, Work(flops))
            course.shares.setdefault(client, Share())
        self._open = {}
        for number, (client, until, reply, wanted) in content["open"].items():
            self._open[number] = _Open(client, until, _read(reply), wanted)
        self._late = [(client, reply.numpy().tobytes()) for client, reply in content["late"]]


def clock_of(
    config: Setting,
    clients: Iterable[str],
    computed: Callable[[], float],
    worked: Callable[[str, bytes], float],
    *,
    on_paper: bool = False,
) -> Clock | None:
    """Return the clock of a simulation that knows how fast everything is; `None` where it does not.

    Args:
        computed, worked: as in `Clock`.
        on_paper: whether time alone is of no interest.

    Raises:
        UserError: clients may be late, and a speed is missing.
    """
    if not config.late and (
        on_paper or config.privacy.unit
    ):  # then no client tells what it computes
        return None
    places = {client: _place(config, client) for client in clients}
    for client, place in places.items():
        device, link = place.device, place.link
        speeds = {"device.flops": device.flops, "link.up": link.up, "link.down": link.down}
        lacking = [name for name, speed in speeds.items() if speed is None]
        if lacking and not config.late:
            return None
        if lacking:
            raise UserError(
                f"{config.late} in a simulation without plan.client.{lacking[0]}",
                f"who is late follows from devices and links, and that of {client} is not known",
                "Write plan.client.device.flops=200e9 plan.client.link.up=10Mbit "
                "plan.client.link.down=50Mbit; plan.tiers has those that differ",
            )

    def seconds(ask: Ask) -> float | None:
        return spent(ask.cost.flops, places[ask.client].device.flops)

    course = Course(places, config.plan.server, seconds)
    return Clock(course, computed, worked, config.fleet.deadline_seconds or math.inf)


def _place(config: Setting, client: str) -> Place:
    """Return where a client is."""
    tier = tier_of(config.tiers, client)
    label = next((label for label, own in config.tiers.items() if own is tier), "")
    return config.plan.of(label, tier.link.up, tier.link.down)


def _kept(reply: bytes | Lost) -> torch.Tensor | str:
    """Return an answer as a checkpoint holds it."""
    if isinstance(reply, Lost):
        return reply.reason
    return torch.frombuffer(bytearray(reply), dtype=torch.uint8)


def _read(kept: torch.Tensor | str) -> bytes | Lost:
    return Lost(kept) if isinstance(kept, str) else kept.numpy().tobytes()


def _weight(size: int) -> Weight:
    return Weight(size, {}, size, size)
