"""Nodes that do not answer: they are not asked again until they do, and hold nobody up for longer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr", reason="Flower is not installed (extra: deploy)")

from distributed_help import FakeMail, Here, asked, come, engine

from trillium.engines import distributed, patience
from trillium.engines.distributed import SessionEngine
from trillium.engines.patience import OVER, OWES, Grace, Patience
from trillium.engines.roster import Online
from trillium.federation.parts import Lost

LONG = 60.0  # seconds that nobody may wait here
SHORT = 0.3


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "GOODBYE_SECONDS", 0.0)
    monkeypatch.setattr(patience, "POLL_SECONDS", 0.01)


class Hangs:
    """Work that does not end until it is let go."""

    def __init__(self) -> None:
        self.go, self.asks = threading.Event(), 0

    def __call__(self, data: bytes) -> bytes:
        self.asks += 1
        assert self.go.wait(LONG)
        return data


@contextmanager
def two(keys: Path, waits: Patience) -> Iterator[tuple[SessionEngine, Hangs, Here]]:
    """An engine with two nodes, `a` and `b`, of which `b` hangs."""
    mail, work, here = FakeMail(), Hangs(), Here()
    mail.online = {1: Online("a", "t0"), 2: Online("b", "t0")}
    with engine(keys, mail, patience=waits) as made:
        made._invitations.send(made._opening)
        come(made, keys, mail, "a", Here())
        come(made, keys, mail, "b", here, work)
        assert made.gather(2).present == {"a", "b"}
        try:
            yield made, work, here
        finally:
            work.go.set()


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def reason(reply: bytes | Lost) -> str:
    assert isinstance(reply, Lost)
    return reply.reason


def test_who_owes_an_answer_is_not_asked_again_until_it_comes(keys: Path) -> None:
    with two(keys, Patience(0.0, SHORT)) as (made, work, here):
        replies = asked(made, "a", "b")
        assert replies["a"] == b"ask"
        assert reason(replies["b"]) == f"no reply within {SHORT:g} s"
        # Neither for another ask, nor for a round, to keep its state, or to go back, is it waited.
        start = time.monotonic()
        again = asked(made, "a", "b")
        assert again["a"] == b"ask"
        assert again["b"] == Lost(OWES, sent=False)
        assert made.gather(1).present == {"a"}
        assert made.save(1).held == {"a": 1}
        assert made.restore(1, {"a": 1}) == {"a", "b"}
        assert time.monotonic() - start < LONG / 2
        assert work.asks == 1
        assert made.late() == []
        told = list(here.told)
        work.go.set()
        until(lambda: not made._sessions.owing)
        assert made.late() == [("b", len(b"ask"))]
        assert made.late() == []
        # It has gone back with the others before it is asked anything.
        assert reason(asked(made, "b")["b"]).startswith("it came back during the round")
        assert made.gather(2).present == {"a", "b"}
        assert here.told == [*told, ["restore", 1]]
        assert asked(made, "b") == {"b": b"ask"}


def test_when_enough_have_answered_the_others_have_their_grace(keys: Path) -> None:
    with two(keys, Patience(0.0, LONG, grace=Grace(1, SHORT))) as (made, _, _):
        replies = asked(made, "a", "b")
        assert replies["a"] == b"ask"
        assert reason(replies["b"]) == f"no reply within {SHORT:g} s of the 1 that are enough"


def test_without_enough_answers_there_is_no_grace(keys: Path) -> None:
    with two(keys, Patience(0.0, LONG, grace=Grace(2, SHORT))) as (made, work, _):
        threading.Timer(3 * SHORT, work.go.set).start()
        assert asked(made, "a", "b") == {"a": b"ask", "b": b"ask"}


def test_all_asks_of_a_round_share_its_time(keys: Path) -> None:
    with two(keys, Patience(0.0, LONG, round_seconds=SHORT)) as (made, _, _):
        assert asked(made, "a") == {"a": b"ask"}
        assert reason(asked(made, "b")["b"]).startswith("no reply within 0")
        assert asked(made, "a")["a"] == Lost(OVER, sent=False)
        made.gather(1)  # the next round has its own
        assert asked(made, "a") == {"a": b"ask"}
