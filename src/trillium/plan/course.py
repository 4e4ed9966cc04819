"""The course of a run on paper: its waves of messages, and what the server computes between them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from trillium.clock.waves import NOTHING, Ask, Wave, Work
from trillium.federation.client import Client
from trillium.federation.engine import Gathered
from trillium.federation.local import LocalEngine
from trillium.plan.paper import Weighed
from trillium.wire.ledger import Entry


@dataclass
class _Open:
    """A wave that is under way."""

    number: int
    posted: bool = False
    collects: bool = False
    asks: dict[str, Ask] = field(default_factory=dict)
    server: float = 0.0


class Course:
    """Notes what happens in a run on paper, as it happens.

    Attributes:
        entries: of the ledger.

    Args:
        computed: gives the FLOPs of the server so far.
    """

    def __init__(self, computed: Callable[[], float]) -> None:
        self.entries: list[Entry] = []
        self._computed, self._before = computed, 0.0
        self._waves: list[_Open] = [_Open(0)]
        self._posted: deque[_Open] = deque()
        self._booked = self._waves[0]

    def begin(self, number: int, *, posted: bool = False, collects: bool = False) -> None:
        """Note that a wave begins."""
        now = self._computed()
        self._waves[-1].server += now - self._before
        self._before = now
        wave = _Open(number, posted, collects)
        self._waves.append(wave)
        if posted:
            self._posted.append(wave)
        self._booked = self._posted.popleft() if collects else wave

    def book(self, entry: Entry) -> None:
        """Note a message; with the ledger's `watch`."""
        self.entries.append(entry)
        asks, name = self._booked.asks, entry.client
        weight = entry.kinds.weight if isinstance(entry.kinds, Weighed) else NOTHING
        if entry.direction == "down":
            asks[name] = Ask(name, entry.verb, weight, None, Work(), entry.purpose)
        elif name in asks:  # else it answers an ask of an earlier round
            down = asks[name].down
            asks[name] = Ask(
                name, entry.verb, down, weight, Work(entry.flops or 0.0), entry.purpose
            )

    def waves(self, number: int) -> list[Wave]:
        """Return the waves of a round, to be called after it."""
        now = self._computed()
        self._waves[-1].server += now - self._before
        self._before = now
        return [
            Wave(tuple(wave.asks.values()), Work(wave.server), wave.posted, wave.collects)
            for wave in self._waves
            if wave.number == number
        ]


class PaperEngine(LocalEngine):
    """Runs clients on paper, and notes the course of it."""

    def __init__(self, clients: Sequence[Client], course: Course) -> None:
        super().__init__(clients)
        self.number, self._course = 0, course

    def carry(self, requests: Mapping[str, bytes]) -> Iterator[tuple[str, bytes]]:
        """Ask the clients in the order of the requests."""
        self._course.begin(self.number)
        return super().carry(requests)

    def post(self, requests: Mapping[str, bytes]) -> Iterator[tuple[str, bytes]]:
        """Ask the clients now; what they answer is collected later."""
        self._course.begin(self.number, posted=True)
        replies = list(super().carry(requests))

        def collected() -> Iterator[tuple[str, bytes]]:
            self._course.begin(self.number, collects=True)
            yield from replies

        return collected()

    def gather(self, need: int) -> Gathered:
        """Return everybody."""
        return Gathered(self._clients.keys())
