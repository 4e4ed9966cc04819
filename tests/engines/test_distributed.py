"""The session engine against nodes that come and go, over real sessions but without Flower."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="Flower is not installed (extra: deploy)")

from distributed_help import COUNTS, OPENING, FakeMail, Here, asked, come, engine
from flwr.app import ConfigRecord, RecordDict

from trillium.engines import distributed
from trillium.engines.roster import Online, Unreachable
from trillium.federation.parts import Lost

CLOSED = RecordDict({"summary": ConfigRecord({"closed": "the node cannot take part: because"})})


@pytest.fixture(autouse=True)
def no_goodbye(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody answers the message that opened a session here."""
    monkeypatch.setattr(distributed, "GOODBYE_SECONDS", 0.0)


def test_who_comes_during_a_round_takes_part_from_the_next_one(keys: Path) -> None:
    mail, here = FakeMail(), Here(had=False)
    mail.online[1] = Online("a", "t0")
    with engine(keys, mail) as made:
        assert made.gather(1).newcomers == set()
        come(made, keys, mail, "a", here)
        reply = asked(made, "a")["a"]
        assert isinstance(reply, Lost)
        assert "takes part from the next one on" in reply.reason
        made.save(3)
        assert here.told == []  # it must not write down what it has not gone back to
        assert made.gather(1).newcomers == {"a"}
        assert made.clients == ["a"]
        assert here.told == [["settle", 3]]
        assert asked(made, "a") == {"a": b"ask"}
        made.save(4)
        assert here.told[-1] == ["save", 4]
        assert made.gather(1).newcomers == set()


def test_a_node_says_what_its_texts_come_to(keys: Path) -> None:
    mail = FakeMail()
    mail.online[1] = Online("a", "t0")
    with engine(keys, mail) as made:
        made.gather(1)
        come(made, keys, mail, "a", Here())
        made.gather(1)
        assert made.counts == {"a": COUNTS}


@pytest.mark.parametrize(
    "arrival",
    [
        b"true",
        b"\xff",
        b'{"round": 1}',
        b'{"round": true, "counts": {}}',
        b'{"round": -1, "counts": {}}',
        b'{"round": 1, "counts": []}',
        b'{"round": 1, "counts": {"texts": -1}}',
        b'{"round": 1, "counts": {"texts": 1.5}}',
        b'{"round": 1, "counts": {"rows": 1}}',
    ],
)
def test_a_node_that_says_something_else_does_not_take_part(keys: Path, arrival: bytes) -> None:
    mail = FakeMail()
    mail.online[1] = Online("a", "t0")
    with engine(keys, mail) as made:
        made.gather(1)
        come(made, keys, mail, "a", Here(arrival=arrival))
        assert made.gather(1).present == set()
        assert made.counts == {}


def test_a_node_whose_link_is_lost_while_it_keeps_its_state_is_asked_again(keys: Path) -> None:
    mail = FakeMail()
    mail.online[1] = Online("a", "t0")
    with engine(keys, mail, wait_seconds=20.0) as made:

        class Cut(Here):
            def control(self, data: bytes) -> bytes:
                if json.loads(data)[0] == "save" and ["save", 4] not in self.told:
                    made._sessions._links["a"].context.cancel()
                return super().control(data)

        made._invitations.send(OPENING)
        come(made, keys, mail, "a", here := Cut(had=True))
        made.gather(1)
        asked(made, "a")
        saved = made.save(4)
        assert saved.held == {"a": 4}
        assert not saved.lost
        # The process is the same one, and says so: its state is that of the round.
        assert here.told == [["settle", 0], ["save", 4], ["settle", 4], ["save", 4]]


def test_who_kept_nothing_is_new_after_a_resume(keys: Path) -> None:
    mail = FakeMail()
    mail.online = {1: Online("a", "t0"), 2: Online("b", "t0")}
    with engine(keys, mail) as made:
        made.gather(2)
        come(made, keys, mail, "a", Here())
        come(made, keys, mail, "b", Here(had=False))
        made.gather(2)  # the server's own, before it goes back to its checkpoint
        made.restore(3, {})
        assert made.gather(2).newcomers == {"b"}
        assert made.gather(2).newcomers == set()


def test_a_supernode_that_was_started_anew_is_invited_anew(keys: Path) -> None:
    mail = FakeMail()
    mail.online[1] = Online("a", "t0")
    with engine(keys, mail) as made:
        made.gather(1)
        come(made, keys, mail, "a", Here())
        made.gather(1)
        assert asked(made, "a") == {"a": b"ask"}
        # Flower was away for a while; the session was not.
        mail.online[1] = Online("a", "t1")
        made.gather(1)
        assert len(mail.tokens["a"]) == 1
        made._sessions.disconnect("a", "the test cuts it")
        made.gather(1)
        assert len(mail.tokens["a"]) == 2
        come(made, keys, mail, "a", Here())
        made.gather(1)
        assert asked(made, "a") == {"a": b"ask"}


def test_a_session_outlives_a_supernode_that_is_offline(keys: Path) -> None:
    mail = FakeMail()
    mail.online[1] = Online("a", "t0")
    with engine(keys, mail) as made:
        made.gather(1)
        come(made, keys, mail, "a", Here())
        made.gather(1)
        mail.replies["a-1"] = Unreachable("Flower error 5: offline")
        made.gather(1)
        assert asked(made, "a") == {"a": b"ask"}
        assert len(mail.tokens["a"]) == 1


def test_a_node_that_cannot_take_part_is_asked_less_and_less(
    keys: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = 1000.0
    monkeypatch.setattr("trillium.engines.invitations.time.monotonic", lambda: now)
    mail = FakeMail()
    mail.online[1] = Online("a", "t0")
    with engine(keys, mail) as made:
        pauses = []
        made.gather(0)
        for count in range(1, 9):
            mail.replies[f"a-{count}"] = CLOSED
            made.gather(0)
            before = now
            while len(mail.tokens["a"]) == count:
                now += 1.0
                made.gather(0)
            pauses.append(now - before)
        assert pauses == [10, 20, 40, 80, 160, 320, 600, 600]
        mail.replies["a-9"] = CLOSED
        made.gather(0)
        mail.online.clear()
    assert "a: its session has ended: the node cannot take part: because" in caplog.text
