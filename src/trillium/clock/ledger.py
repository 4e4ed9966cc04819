"""The ledger of a run over links and devices that it did not have.

What crossed and what was computed is as measured; how long it takes follows from links and devices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from trillium.clock.places import Place
from trillium.clock.times import RoundTime, round_time
from trillium.clock.waves import NOTHING, Ask, Wave, Weight, Work


class Crossed(Protocol):
    """One line of a ledger."""

    @property
    def client(self) -> str:
        """Name of the client."""

    @property
    def verb(self) -> str:
        """For what it was asked."""

    @property
    def direction(self) -> str:
        """`up` or `down`."""

    @property
    def purpose(self) -> str:
        """`train`, `once` or another."""

    @property
    def bytes(self) -> int:
        """Its length."""

    @property
    def kinds(self) -> Mapping[str, int]:
        """The same by kind of tensor."""

    @property
    def seconds(self) -> float | None:
        """How long the client worked for it."""

    @property
    def flops(self) -> float | None:
        """What the client computed for it."""


@dataclass(frozen=True)
class MeasuredWave:
    """A wave of a ledger, with the seconds that its clients computed, by name."""

    wave: Wave
    seconds: dict[str, float]


def measured_time(
    entries: Iterable[Crossed],
    places: Callable[[str], Place],
    server: Place,
    server_flops: float,
) -> RoundTime | None:
    """Return how a measured round would pass at some places; `None` where a speed is missing.

    Args:
        entries: of the round, in the order of the ledger; those of an evaluation do not count.
        places: of the clients, by name. Where the speed of its device is not known, a client computes
            as long as was measured.
        server_flops: what it computed in the round.
    """
    waves = list(waves_of(entry for entry in entries if entry.purpose != "evaluate"))
    # The waves live as long as this list, so that the identity of an ask is a key.
    measured = {id(ask): wave.seconds[ask.client] for wave in waves for ask in wave.wave.asks}
    where = {ask.client: places(ask.client) for wave in waves for ask in wave.wave.asks}
    last = Wave((), Work(server_flops))

    def compute(ask: Ask) -> float | None:
        speed = where[ask.client].device.flops
        return measured.get(id(ask), 0.0) if speed is None else ask.cost.flops / speed

    return round_time([*(wave.wave for wave in waves), last], where, server, compute)


def waves_of(entries: Iterable[Crossed]) -> Iterator[MeasuredWave]:
    """Yield the waves of a round: messages of one verb, at most one to each client.

    Args:
        entries: of one round, in the order of the ledger.
    """
    asked: dict[str, list[Crossed]] = {}
    verb = ""
    for entry in entries:
        is_new = entry.direction == "down" and (entry.verb != verb or entry.client in asked)
        if is_new and asked:
            yield _measured(asked)
            asked = {}
        if entry.direction == "down":
            verb = entry.verb
        asked.setdefault(entry.client, []).append(entry)
    if asked:
        yield _measured(asked)


def _measured(asked: dict[str, list[Crossed]]) -> MeasuredWave:
    asks, seconds = [], {}
    for client, entries in asked.items():
        down = next((entry for entry in entries if entry.direction == "down"), None)
        up = next((entry for entry in entries if entry.direction == "up"), None)
        ask = Ask(
            client,
            entries[0].verb,
            NOTHING if down is None else _weight(down),
            None if up is None else _weight(up),
            Work(flops=(up.flops or 0.0) if up else 0.0),
            entries[0].purpose,
        )
        asks.append(ask)
        seconds[client] = (up.seconds or 0.0) if up else 0.0
    return MeasuredWave(Wave(tuple(asks)), seconds)


def _weight(entry: Crossed) -> Weight:
    return Weight(entry.bytes, entry.kinds, entry.bytes, entry.bytes)
