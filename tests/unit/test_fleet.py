"""The fleet: who is asked, who is missing and why, when a round has failed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch

from trillium.federation.cohort import FleetConfig
from trillium.federation.engine import Gathered
from trillium.federation.failed import RoundFailed
from trillium.federation.fleet import Fleet
from trillium.federation.parts import Lost
from trillium.wire.kinds import MessageError
from trillium.wire.ledger import Ledger
from trillium.wire.message import Message, decode, encode
from trillium.wire.wire import Wire

NAMES = [f"client-{index}" for index in range(8)]
BUT_3 = [name for name in NAMES if name != "client-3"]
FOUR = torch.tensor([10.0, 0.5, 99.0, 7.0], dtype=torch.float64)
COST = {"control/cost": FOUR}
Answer = Callable[[str, Message], bytes | Lost | None]


def good(client: str, message: Message) -> bytes:
    return encode(Message(message.verb, COST, {"from": client}))


class Engine:
    """Clients that answer as a function says; `None` is silence."""

    def __init__(self, answer: Answer = good, names: list[str] = NAMES) -> None:
        self.answer, self.clients = answer, names
        self.asked: list[str] = []
        self.away: set[str] = set()

    def carry(self, requests: Mapping[str, bytes]) -> Iterator[tuple[str, bytes | Lost]]:
        for client, data in requests.items():
            self.asked.append(client)
            reply = self.answer(client, decode(data))
            if reply is not None:
                yield client, reply

    def gather(self, need: int) -> Gathered:
        return Gathered({*self.clients} - self.away)

    def save(self, number: int) -> None: ...

    def restore(self, number: int, held: Mapping[str, int]) -> None: ...


def fleet(answer: Answer = good, seed: int = 0, **options: Any) -> Fleet:
    return Fleet(Engine(answer), Wire(), Ledger(), FleetConfig(**options), seed)


def ask(found: Fleet, message: Message | None = None) -> dict[str, Any]:
    asks = dict.fromkeys(found.cohort, message or Message("train"))
    return dict(found.ask(asks, lambda reply: reply.meta.get("from")))


def test_cohorts_depend_on_seed_and_round_alone() -> None:
    one, two = fleet(clients_per_round=3), fleet(clients_per_round=3)
    two.begin_round(9)
    ask(two)
    cohorts = [one.begin_round(number) for number in range(1, 6)]
    assert [two.begin_round(number) for number in range(1, 6)] == cohorts
    assert cohorts != [
        fleet(seed=1, clients_per_round=3).begin_round(number) for number in range(1, 6)
    ]
    assert len({tuple(cohort) for cohort in cohorts}) > 1
    assert all(cohort == sorted(set(cohort)) and len(cohort) == 3 for cohort in cohorts)


def test_sampling_is_even() -> None:
    found = fleet(clients_per_round=2)
    times = Counter(name for number in range(2000) for name in found.begin_round(number))
    # Binomial with mean 500 and deviation 19.
    assert all(abs(times[name] - 500) < 100 for name in NAMES)


def test_all_are_asked_by_default_and_told_the_round() -> None:
    rounds: list[Any] = []

    def note(client: str, message: Message) -> bytes:
        rounds.append((message.meta["round"], message.meta["own"]))
        return good(client, message)

    found = fleet(note)
    found.begin_round(4)
    assert found.cohort == NAMES
    assert ask(found, Message("train", meta={"own": 1})) == {name: name for name in NAMES}
    assert rounds == [(4, 1)] * 8


def test_all_answers_are_sorted_in_whatever_order_they_come() -> None:
    found = fleet(one_bad(None), min_replies=1)
    found.begin_round(1)
    asks = dict.fromkeys(reversed(NAMES), Message("train"))
    assert [client for client, _ in found.ask(asks, lambda reply: 0)] == [*reversed(BUT_3)]
    found.begin_round(2)
    assert [*found.ask_all(asks, lambda reply: reply.meta["from"]).items()] == [
        (name, name) for name in BUT_3
    ]
    found.begin_round(3)
    assert found.tell(asks) == {*BUT_3}


def one_bad(reply: bytes | None) -> Answer:
    return lambda client, message: reply if client == "client-3" else good(client, message)


BAD: dict[str, tuple[bytes | None, str]] = {
    "silence": (None, "no reply"),
    "noise": (b"hello", "these bytes are not a Trillium message"),
    "nothing": (b"", "these bytes are not a Trillium message"),
    "cut off": (encode(Message("train", COST))[:-3], "unreadable tensors|header"),
    "another verb": (encode(Message("teach", COST)), "asked to train, the client answered teach"),
    "error": (encode(Message("error", COST, {"reason": "out of memory"})), "out of memory"),
    "error without reason": (encode(Message("error", COST)), "gave no reason"),
    "no cost": (encode(Message("train")), "control/cost is missing"),
    "cost below zero": (
        encode(Message("train", {"control/cost": -FOUR})),
        "cost holds .*below zero",
    ),
    "refused": (encode(Message("train", COST, {"from": "bad"})), "I do not like it"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_reply_drops_the_client_with_a_reason(name: str) -> None:
    reply, why = BAD[name]

    def read(message: Message) -> Any:
        if message.meta.get("from") == "bad":
            raise MessageError("I do not like it")
        return message.meta["from"]

    found = fleet(one_bad(reply), min_replies=7)
    found.begin_round(1)
    asks = dict.fromkeys(found.cohort, Message("train"))
    answers = dict(found.ask(asks, read))
    assert sorted(answers) == [name for name in NAMES if name != "client-3"]
    assert list(found.missing) == ["client-3"]
    assert re.search(why, found.missing["client-3"])
    assert "client-3" not in found.cohort
    found.begin_round(2)
    assert found.cohort == NAMES
    assert found.missing == {}

    strict = fleet(one_bad(reply))
    strict.begin_round(1)
    with pytest.raises(RoundFailed, match=r"round 1: 7 of 8 .*min_replies is 8 \(client-3: "):
        dict(strict.ask(asks, read))


def test_a_long_reason_is_cut() -> None:
    reply = encode(Message("error", COST, {"reason": "x" * 10_000}))
    found = fleet(one_bad(reply), min_replies=1)
    found.begin_round(1)
    ask(found)
    assert len(found.missing["client-3"]) == 1000


def test_losses_add_up_over_the_asks_of_a_round() -> None:
    silent = {"train": "client-0", "learn": "client-1"}

    def answer(client: str, message: Message) -> bytes | None:
        return None if silent.get(message.verb) == client else good(client, message)

    found = fleet(answer, min_replies=7)
    found.begin_round(1)
    ask(found)
    with pytest.raises(RoundFailed, match="6 of 8") as caught:
        ask(found, Message("learn"))
    assert "client-0: no reply; client-1: no reply" in str(caught.value)


def test_simulated_failures_depend_on_seed_round_and_client() -> None:
    def failed(seed: int) -> list[list[str]]:
        found = fleet(seed=seed, failure_rate=0.5, min_replies=1)
        rounds = []
        for number in range(1, 30):
            found.begin_round(number)
            ask(found)
            engine = found.engine
            assert isinstance(engine, Engine)
            assert not set(engine.asked) & set(found.missing)
            engine.asked.clear()
            rounds.append(sorted(found.missing))
        return rounds

    once = failed(0)
    assert once == failed(0) != failed(1)
    assert 0.35 < sum(map(len, once)) / (29 * len(NAMES)) < 0.65


def test_evaluation_and_what_comes_before_the_rounds_never_fail() -> None:
    found = fleet(failure_rate=0.99, min_replies=8)
    assert len(ask(found)) == 8
    found.begin_round(1)
    asks = dict.fromkeys(found.cohort, Message("look"))
    assert len(dict(found.ask(asks, lambda reply: None, "evaluate"))) == 8


def test_the_ledger_has_both_directions_and_the_cost() -> None:
    found = fleet()
    found.begin_round(3)
    ask(found)
    entries = found.ledger.entries
    down = [e for e in entries if e.direction == "down"]
    up = [e for e in entries if e.direction == "up"]
    assert len(down) == len(up) == 8
    assert {(e.round, e.verb, e.purpose) for e in entries} == {(3, "train", "train")}
    assert {(e.flops, e.seconds, e.peak_bytes) for e in down} == {(None, None, None)}
    assert {(e.flops, e.seconds, e.peak_bytes) for e in up} == {(10.0, 0.5, 99)}
    assert {e.bytes_raw for e in up} == {7 + 4 * 8}  # what the client says, and its costs


@pytest.mark.parametrize(
    ("options", "instead"),
    [
        ({"clients_per_round": 9}, "at most 8"),
        ({"min_replies": 9}, "at most 8"),
        ({"clients_per_round": 3, "min_replies": 4}, "at most 3"),
        ({"failure_rate": 0.1}, r"fleet\.min_replies=1"),
    ],
)
def test_contradictions_are_refused_before_the_run(options: dict[str, Any], instead: str) -> None:
    with pytest.raises(ValueError, match=instead) as caught:  # pydantic tells what a model refuses
        fleet(**options)
    assert "fleet." in str(caught.value)


def test_clients_that_are_away_are_sampled_last() -> None:
    whole, engine = fleet(clients_per_round=3), Engine()
    found = Fleet(engine, Wire(), Ledger(), FleetConfig(clients_per_round=3), 0)
    for number in range(1, 20):
        drawn = whole.begin_round(number)
        engine.away = {drawn[0]}
        cohort = found.begin_round(number)
        assert {*drawn[1:]} < {*cohort}
        assert drawn[0] not in cohort
    engine.away = {*NAMES[1:]}
    assert NAMES[0] in found.begin_round(1)
    assert len(found.asked) == 3


def test_what_was_not_sent_is_not_booked() -> None:
    def answer(client: str, message: Message) -> bytes | Lost:
        if client == NAMES[1]:
            return Lost("not connected", sent=False)
        return Lost("the link was lost") if client == NAMES[2] else good(client, message)

    found = fleet(answer, min_replies=1)
    found.begin_round(1)
    ask(found)
    assert found.missing == {NAMES[1]: "not connected", NAMES[2]: "the link was lost"}
    assert {e.client for e in found.ledger.entries if e.direction == "down"} == {*NAMES} - {
        NAMES[1]
    }
    assert {e.client for e in found.ledger.entries if e.direction == "up"} == {*NAMES} - {
        *NAMES[1:3]
    }


def test_what_is_posted_is_done_before_what_is_asked_later() -> None:
    """An engine in which nobody works at the same time does it at once."""
    found = fleet()
    found.begin_round(1)
    engine = found.engine
    assert isinstance(engine, Engine)
    first, second = found.cohort[:2], found.cohort[1:3]
    read = dict.fromkeys(NAMES, lambda reply: reply.verb)
    answers = found.post(dict.fromkeys(first, Message("early")), read)
    assert engine.asked == first
    late = dict(found.ask(dict.fromkeys(second, Message("late")), read))
    assert engine.asked == [*first, *second]
    assert dict(answers) == dict.fromkeys(first, "early")
    assert late == dict.fromkeys(second, "late")
    booked = [(e.client, e.verb) for e in found.ledger.entries if e.direction == "up"]
    assert booked == [(c, "late") for c in second] + [(c, "early") for c in first]


def test_who_does_not_answer_what_was_posted_drops_out() -> None:
    found = fleet(lambda client, message: None if client == NAMES[0] else good(client, message),
                  min_replies=2)  # fmt: skip
    found.begin_round(1)
    read = dict.fromkeys(NAMES, lambda reply: reply.verb)
    answers = found.post(dict.fromkeys(NAMES[:3], Message("early")), read)
    assert set(dict(answers)) == {*NAMES[1:3]}
    assert found.missing == {NAMES[0]: "no reply"}


def test_an_answer_that_came_too_late_is_booked_in_the_round_of_its_ask() -> None:
    class Late(Engine):
        come: tuple[tuple[str, int], ...] = ()

        def late(self) -> tuple[tuple[str, int], ...]:
            come, self.come = self.come, ()
            return come

    engine = Late(lambda c, m: Lost("no reply") if c == NAMES[1] else good(c, m))
    found = Fleet(engine, Wire(), Ledger(), FleetConfig(min_replies=1), 0)
    found.begin_round(1)
    ask(found)
    before = len(found.ledger.entries)
    engine.come = ((NAMES[1], 77), (NAMES[2], 5))  # the second owes nothing
    found.begin_round(2)
    [entry] = found.ledger.entries[before:]
    assert (entry.client, entry.round, entry.direction, entry.bytes) == (NAMES[1], 1, "up", 77)
    assert (entry.verb, entry.purpose, sum(entry.kinds.values())) == ("train", "train", 77)


def test_what_a_client_says_is_one_printable_line() -> None:
    """It stands in logs and on screens: it can neither forge a line there nor move the cursor."""
    words = "no\n2026-01-01 INFO server: all is well\x1b[2J\u202e"

    def answer(client: str, message: Message) -> bytes | Lost:
        if client == NAMES[0]:
            return Lost(words)
        if client == NAMES[1]:
            return encode(Message("error", COST, {"reason": words}))
        return good(client, message)

    found = fleet(answer, min_replies=1)
    found.begin_round(1)
    ask(found)
    assert [*found.missing] == NAMES[:2]
    assert all(why.isprintable() for why in found.missing.values())
