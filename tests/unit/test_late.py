"""Late clients in simulated time: who is first, who is left out, and that no answer is lost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from test_fleet import ask, good

from tiny import experiment_config
from trillium.clock.course import Course, spent
from trillium.clock.places import Device, PaperLink, Place
from trillium.errors import UserError
from trillium.experiment.run import build
from trillium.federation.clock import Clock
from trillium.federation.cohort import FleetConfig
from trillium.federation.engine import Gathered
from trillium.federation.failed import RoundFailed
from trillium.federation.fleet import Fleet
from trillium.federation.parts import Lost
from trillium.wire.ledger import Entry, Ledger
from trillium.wire.message import Message, decode
from trillium.wire.wire import Wire

PRIVATE = ["privacy={name: client, noise: 1}", "framework.weights=equal", "training.max_length=64"]
NAMES = ["a", "b", "c", "d"]
SPEEDS = {"a": 4.0, "b": 1.0, "c": 2.0, "d": 0.1}  # FLOP/s; an answer takes 10 FLOPs
SECONDS = {name: 10 / speed + 0.5 for name, speed in SPEEDS.items()}  # latency twice


class Engine:
    """Clients that answer at once."""

    clients = NAMES

    def carry(self, requests: Mapping[str, bytes]) -> Iterator[tuple[str, bytes | Lost]]:
        for name, data in requests.items():
            yield name, good(name, decode(data))

    def gather(self, need: int) -> Gathered:
        return Gathered({*NAMES})

    def save(self, number: int) -> None: ...

    def restore(self, number: int, held: Mapping[str, int]) -> None: ...


def fleet(**options: Any) -> Fleet:
    """A fleet whose links take a quarter of a second each way, however much crosses."""
    places = {
        name: Place(device=Device(flops=speed), link=PaperLink(up=1e12, down=1e12, latency=0.25))
        for name, speed in SPEEDS.items()
    }
    found = Fleet(Engine(), Wire(), Ledger(), FleetConfig(**options), 0)
    course = Course(places, Place(), lambda a: spent(a.cost.flops, SPEEDS[a.client]))
    deadline = found.config.deadline_seconds or float("inf")
    found.clock = Clock(course, lambda: 0.0, found.worked, deadline)
    return found


def ups(found: Fleet) -> list[Entry]:
    return [entry for entry in found.ledger.entries if entry.direction == "up"]


def seconds(found: Fleet) -> float:
    assert found.clock is not None
    return found.clock.seconds


def test_answers_come_in_the_order_of_the_clock() -> None:
    found = fleet()
    found.begin_round(1)
    assert [*ask(found)] == ["a", "c", "b", "d"]
    at = {entry.client: entry.at_seconds for entry in ups(found)}
    assert at == pytest.approx(SECONDS)
    assert seconds(found) == pytest.approx(SECONDS["d"])
    downs = [e.at_seconds for e in found.ledger.entries if e.direction == "down"]
    assert downs == [0.0] * 4


def test_the_first_are_taken_and_the_others_are_asked_when_they_have_answered() -> None:
    found = fleet(take=2)
    found.begin_round(1)
    assert [*ask(found)] == ["a", "c"]
    assert found.missing == dict.fromkeys("bd", "2 of 4 had answered before")
    assert seconds(found) == pytest.approx(SECONDS["c"])
    found.begin_round(2)  # b and d are at work still
    assert {*found.missing} == {*"bd"}
    assert found.cohort == ["a", "c"]
    assert [*ask(found)] == ["a", "c"]
    assert seconds(found) == pytest.approx(2 * SECONDS["c"])
    found.begin_round(3)
    assert found.cohort == ["a", "b", "c"]
    came = [entry for entry in ups(found) if entry.client == "b"]
    assert [(entry.verb, entry.flops) for entry in came] == [("train", 10.0)]


def test_no_answer_is_lost() -> None:
    found = fleet(take=3)
    for number in range(1, 12):
        found.begin_round(number)
        assert len(ask(found)) == 3
    assert found.clock is not None
    found.clock.wait(1)
    found.book_late()
    sent = [e.client for e in found.ledger.entries if e.direction == "down"]
    assert sorted(sent) == sorted(entry.client for entry in ups(found))
    assert sent.count("d") > 1


def test_time_passes_until_enough_are_free() -> None:
    found = fleet(take=3)
    found.begin_round(1)
    ask(found)
    found.config = FleetConfig()  # all are needed now, and d is at work
    found.begin_round(2)
    assert found.cohort == NAMES
    assert seconds(found) == pytest.approx(SECONDS["d"])


def test_more_are_asked_than_are_needed() -> None:
    found = fleet(clients_per_round=2, over_sample=1.5)
    cohorts = []
    for number in range(1, 9):
        cohorts.append(found.begin_round(number))
        assert len(ask(found)) == 2
    assert {len(cohort) for cohort in cohorts} == {3}
    assert not any("d" in answered for answered in cohorts[1:3] if "d" in cohorts[0])
    assert FleetConfig(clients_per_round=10, over_sample=1.1).size(20) == 11  # and not 12


def test_a_deadline_is_of_the_clock() -> None:
    found = fleet(deadline_seconds=20.0, min_replies=1)
    found.begin_round(1)
    assert [*ask(found)] == ["a", "c", "b"]
    assert found.missing == {"d": "no reply within 20 s"}
    assert seconds(found) == pytest.approx(20.0)
    strict = fleet(deadline_seconds=20.0)
    strict.begin_round(1)
    with pytest.raises(RoundFailed, match="no reply within 20 s"):
        ask(strict)


def test_evaluating_takes_no_simulated_time() -> None:
    found = fleet(take=2)
    found.begin_round(1)
    everyone = dict.fromkeys(NAMES, Message("look"))
    assert {*dict(found.ask(everyone, lambda reply: None, "evaluate"))} == {*NAMES}
    assert seconds(found) == 0
    assert all(e.at_seconds is None for e in found.ledger.entries)


def test_what_is_under_way_is_kept() -> None:
    """Stopped and gone on with after each round, all comes at the same times."""
    whole, cut = fleet(take=3), fleet(take=3)
    for number in range(1, 8):
        for found in (whole, cut):
            found.begin_round(number)
            ask(found)
        anew = fleet(take=3)
        anew.load(cut.dump())
        anew.ledger = cut.ledger
        cut = anew
    assert whole.ledger.entries == cut.ledger.entries
    assert seconds(whole) == seconds(cut)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["fleet.take=2"], "fleet.take=2 in a simulation without plan.client.device.flops"),
        (["fleet.over_sample=1.3"], "all clients are asked in every round"),
        (["fleet={clients_per_round: 3, over_sample: 1.5}"], "there are only 3 clients"),
        (["fleet.take=3"], "only 3 clients are asked in a round"),
        (["fleet={take: 2, min_replies: 3}"], "only 2 clients are asked"),
        (["fleet.take=2", "framework=split"], "fleet.take=2 with framework=split"),
        (["fleet.deadline_seconds=5", "framework=centralised"], "with framework=centralised"),
        (
            [*PRIVATE, "fleet.take=2"],
            "fleet.take=2 with privacy=client",
        ),
        (
            ["fleet.take=4", "sums=masked", "data.num_clients=6", "framework.weights=equal"],
            "fleet.take=4 with sums=masked",
        ),
        (
            ["fleet={clients_per_round: 2, take: 1, sampling: cyclic}"],
            "fleet.take=1 with fleet.sampling=cyclic",
        ),
    ],
)
def test_what_cannot_be_is_refused(hub: Any, words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        build(experiment_config(hub, *words))
