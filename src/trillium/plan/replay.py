"""A measured run over links and devices that it did not have: the ledger replayed in time.

What crossed and what was computed is as measured; how long it takes follows from the given links and
devices. The time to an accuracy is then that of the round after which it was evaluated.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from trillium.config.experiment import experiment, read_yaml
from trillium.errors import UserError
from trillium.plan.data import by_tier
from trillium.plan.places import Planning
from trillium.plan.sizes import Weight
from trillium.plan.times import RoundTime, round_time
from trillium.plan.waves import Ask, Wave, Work
from trillium.wire.ledger import Entry


@dataclass(frozen=True)
class Replayed:
    """One round of a run on paper links.

    Attributes:
        number: of the round.
        time: its course.
        seconds: from the begin of the run to the end of this round.
        metrics: what was evaluated after it; empty if nothing was.
    """

    number: int
    time: RoundTime
    seconds: float
    metrics: dict[str, float]


def replay(folder: Path, planning: Planning) -> list[Replayed]:
    """Return the rounds of a measured run as they would pass on other devices and links.

    Where the FLOP/s of the clients' device are not given, they compute as long as was measured.

    Args:
        folder: of the run.
        planning: devices and links.

    Raises:
        UserError: the folder holds no ledger, or the speed of a link is missing.
    """
    try:
        text = (folder / "wire.jsonl").read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(
            str(folder), "there is no ledger in it", "Give the folder of a run"
        ) from error
    entries = [Entry(**json.loads(line)) for line in text.splitlines()]
    config = experiment(read_yaml(folder / "config.yaml"))
    tiers = by_tier(config, {entry.client for entry in entries})
    places = {name: planning.place(config, t) for t, names in tiers.items() for name in names}
    metrics = _metrics(folder)
    by_round: dict[int, list[Entry]] = defaultdict(list)
    for entry in entries:
        if entry.purpose != "evaluate":
            by_round[entry.round].append(entry)
    seconds, flops, found = 0.0, 0.0, []
    for number in sorted(by_round):
        waves = list(waves_of(by_round[number]))
        # The waves live as long as this list, so that the identity of an ask is a key.
        measured = {id(ask): wave.seconds[ask.client] for wave in waves for ask in wave.wave.asks}
        server = metrics.get(number, {}).get("server_flops", flops)
        last = Wave((), Work(max(server - flops, 0.0)))
        flops = max(server, flops)

        def compute(ask: Ask, measured: dict[int, float] = measured) -> float | None:
            speed = places[ask.client].device.flops
            return measured.get(id(ask), 0.0) if speed is None else ask.cost.flops / speed

        time = round_time([*(wave.wave for wave in waves), last], places, planning.server, compute)
        if time is None:
            raise UserError(
                "a replay without the speed of a link or of the server",
                "how long messages and the server's work take follows from them",
                "Write plan.client.link.up=10Mbit plan.client.link.down=50Mbit "
                "plan.server.device.flops=10TFLOPS",
            )
        seconds += time.seconds
        found.append(Replayed(number, time, seconds, metrics.get(number, {})))
    return found


@dataclass(frozen=True)
class MeasuredWave:
    """A wave of a ledger, with the seconds that its clients computed, by name."""

    wave: Wave
    seconds: dict[str, float]


def waves_of(entries: Iterable[Entry]) -> Iterator[MeasuredWave]:
    """Yield the waves of a round: messages of one verb, at most one to each client.

    Args:
        entries: of one round, in the order of the ledger.
    """
    asked: dict[str, list[Entry]] = {}
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


def _measured(asked: dict[str, list[Entry]]) -> MeasuredWave:
    asks, seconds = [], {}
    for client, entries in asked.items():
        down = next((entry for entry in entries if entry.direction == "down"), None)
        up = next((entry for entry in entries if entry.direction == "up"), None)
        ask = Ask(
            client,
            entries[0].verb,
            _weight(down) or Weight(0, {}, 0, 0),
            _weight(up),
            Work(flops=(up.flops or 0.0) if up else 0.0),
            entries[0].purpose,
        )
        asks.append(ask)
        seconds[client] = (up.seconds or 0.0) if up else 0.0
    return MeasuredWave(Wave(tuple(asks)), seconds)


def _weight(entry: Entry | None) -> Weight | None:
    if entry is None:
        return None
    return Weight(entry.bytes, entry.kinds, entry.bytes, entry.bytes)


def _metrics(folder: Path) -> dict[int, dict[str, float]]:
    path = folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return {
        line["round"]: {key: v for key, v in line.items() if isinstance(v, int | float)}
        for line in map(json.loads, lines)
    }
