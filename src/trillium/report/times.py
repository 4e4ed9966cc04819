"""When each round of a run would end at other places, by its ledger and the clock of plans.

A run that has a clock of its own says so itself, and where clients may be late it alone can: elsewhere
others would be.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import groupby
from typing import Any

from matplotlib.figure import Figure

from trillium.clock.ledger import measured_time
from trillium.clock.places import Place, Places
from trillium.clock.presets import PRESETS, SERVER
from trillium.report import human
from trillium.report.curves import Panel, Spent, draw, plotted_measures
from trillium.report.read import Run, number
from trillium.report.summary import Row

OWN = "as given"  # the place that a recipe names


@dataclass(frozen=True)
class Line:
    """One message of a ledger, as the clock takes it."""

    round: int
    client: str
    verb: str
    direction: str
    purpose: str
    bytes: int
    kinds: Mapping[str, int] = field(default_factory=dict)
    seconds: float | None = None
    flops: float | None = None


@dataclass(frozen=True)
class Clock:
    """When rounds end, in seconds from the begin of a run, by place and folder of the run."""

    places: Mapping[str, Places]
    ends: Mapping[str, Mapping[str, Mapping[int, float]]]

    def spent(self, place: str) -> Spent:
        """Return what gives the seconds of a run until a round; `None` where they are not known."""
        ends = self.ends[place]

        def until(run: Run, round_index: int) -> float | None:
            found = ends.get(run.folder.name)
            if not found:
                return None
            rounds = list(found)
            count = bisect_right(rounds, round_index)
            return found[rounds[count - 1]] if count else 0.0

        return until

    def total(self, row: Row, place: str) -> float | None:
        """Return how long the runs of an arm take, as a mean; `None` where one is not known."""
        spent = self.spent(place)
        found = [spent(run, run.evaluations[-1]["round"]) for run in row.counted if run.evaluations]
        known = [seconds for seconds in found if seconds is not None]
        return sum(known) / len(known) if known and len(known) == len(found) else None

    def described(self, place: str) -> str:
        """Return what a place is, for people."""
        client, server = self.places[place].client, self.places[place].server
        return f"{_described(client)}; the server {_described(server)}"


def clock_of(rows: Sequence[Row], own: Mapping[str, Any] | None = None) -> Clock:
    """Return when the rounds of all runs that count would end at places that many people know.

    Args:
        own: places that the recipe names, as it holds them.
    """
    places = {name: Places(client=place, server=SERVER) for name, place in PRESETS.items()}
    if own:
        told = Places.model_validate(own)
        server = SERVER if told.server == Place() else told.server
        places = {OWN: told.model_copy(update={"server": server}), **places}
    ends: dict[str, dict[str, dict[int, float]]] = {name: {} for name in places}
    for run in (run for row in rows for run in row.counted):
        for name, found in _ends(run, places).items():
            ends[name][run.folder.name] = found
    kept = {name: found for name, found in ends.items() if found}
    return Clock({name: places[name] for name in kept}, kept)


def places_of(rows: Sequence[Row]) -> Mapping[str, Any] | None:
    """Return the places that a run has named for itself, where it is no comparison."""
    runs = [run for row in rows for run in row.counted]
    found = runs[0].config.get("plan") if len(runs) == 1 else None
    return found if found and Places.model_validate(found) != Places() else None


def plot_times(rows: Sequence[Row], clock: Clock | None = None) -> Figure | None:
    """Draw quality against time, a panel for each place."""
    clock = clock_of(rows) if clock is None else clock
    panels = [
        Panel(f"{measure.title}, {place}", measure, clock.spent(place), "Time since the start")
        for measure in plotted_measures(rows)[:1]
        for place in clock.places
    ]
    return draw(rows, panels, "s") if panels else None


def _ends(run: Run, places: Mapping[str, Places]) -> dict[str, dict[int, float]]:
    """Return when each round of a run ends, by place.

    Nothing where it has sent nothing, or where clients do not tell what they compute, as in a private
    run: the times of messages would be taken for the whole.
    """
    own = {
        line["round"]: at
        for line in run.evaluations
        if (at := number(line.get("simulated_seconds"))) is not None
    }
    if _is_late(run):
        return {OWN: own} if own and OWN in places else {}
    if run.traffic is None or not run.traffic.num_turns or run.traffic.until().flops is None:
        return {}
    server = {line["round"]: number(line.get("server_flops")) for line in run.evaluations}
    found: dict[str, dict[int, float]] = {name: {} for name in places}
    flops, seconds = 0.0, dict.fromkeys(places, 0.0)
    for index, lines in groupby(_lines(run), key=lambda line: line.round):
        entries = list(lines)
        now = server.get(index) or flops
        spent, flops = max(now - flops, 0.0), max(now, flops)
        for name, where in places.items():
            if name not in found:
                continue
            time = measured_time(entries, _at(run, where), where.server, spent)
            if time is None:  # a speed is missing
                del found[name]
                continue
            seconds[name] += time.seconds
            found[name][index] = seconds[name]
    return {**found, OWN: own} if own and OWN in found else found


def _is_late(run: Run) -> bool:
    """Whether its rounds go on without some clients."""
    fleet, framework = (run.config.get(key) or {} for key in ("fleet", "framework"))
    more = (fleet.get("over_sample") or 1) > 1 or framework.get("asynchronous")
    return bool(more or fleet.get("take") or fleet.get("deadline_seconds"))


def _at(run: Run, places: Places) -> Callable[[str], Place]:
    """Return what gives the place of a client, by the tiers of its run."""
    tiers = run.config.get("tiers")
    known: Mapping[str, Mapping[str, Any]] = tiers if isinstance(tiers, Mapping) else {}
    made: dict[str, Place] = {}

    def at(client: str) -> Place:
        labels = (
            label
            for label, tier in known.items()
            if any(fnmatchcase(client, pattern) for pattern in tier.get("clients", ()))
        )
        label = next(labels, "")
        if label not in made:
            link = known.get(label, {}).get("link") or {}
            made[label] = places.of(label, number(link.get("up")), number(link.get("down")))
        return made[label]

    return at


def _lines(run: Run) -> Iterator[Line]:
    """Yield the messages of a run that an evaluation has not caused; what is broken is left out."""
    path = run.folder / "wire.jsonl"
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as texts:
        for text in texts:
            try:
                line = json.loads(text)
                if line["purpose"] != "evaluate":
                    yield Line(**{name: line[name] for name in _NAMES if name in line})
            except (KeyError, TypeError, ValueError):
                continue


_NAMES = tuple(Line.__dataclass_fields__)


def _described(place: Place) -> str:
    link, device = place.link, place.device
    words = [f"{_speed(device.flops, 'FLOP/s')} in training" if device.flops else "its own speed"]
    if link.up and link.up == link.down:
        words.append(f"{_speed(link.up, 'bit/s')} each way")
    else:
        words += [f"{_speed(link.up, 'bit/s')} up"] if link.up else []
        words += [f"{_speed(link.down, 'bit/s')} down"] if link.down else []
    words += [f"{1000 * link.latency:g} ms latency"] if link.latency else []
    return ", ".join(words)


def _speed(value: float, unit: str) -> str:
    amount, rest = human.prefixed(value, unit).split(" ", 1)
    return f"{float(amount):g} {rest}"
