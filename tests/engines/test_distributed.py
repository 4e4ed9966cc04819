"""The session engine against nodes that come and go, over real sessions but without Flower."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest

pytest.importorskip("flwr", reason="Flower is not installed (extra: deploy)")

from flwr.app import ConfigRecord, RecordDict
from session_help import ClientThread, server_tls

from trillium.engines import distributed
from trillium.engines.distributed import SessionEngine
from trillium.engines.opening import Arrival, Opening
from trillium.engines.patience import Patience
from trillium.engines.roster import Mail, Online, Unreachable, text_of
from trillium.federation.fleet import Lost

OPENING = Opening("run", {}, [], 0)
COUNTS = {"num_examples": 4, "texts": 5, "truncated": 2, "left_out": 1}
CLOSED = RecordDict({"summary": ConfigRecord({"closed": "the node cannot take part: because"})})


@pytest.fixture(autouse=True)
def no_goodbye(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody answers the message that opened a session here."""
    monkeypatch.setattr(distributed, "GOODBYE_SECONDS", 0.0)


class FakeMail:
    """Flower as the engine sees it: who is online, what was sent, what is answered."""

    def __init__(self) -> None:
        self.online: dict[int, Online] = {}
        self.tokens: dict[str, list[str]] = {}
        self.replies: dict[str, RecordDict | Lost] = {}
        self._count = 0

    def nodes(self) -> dict[int, Online]:
        return self.online

    def send(
        self, action: str, contents: Mapping[int, RecordDict], ttl: float | None
    ) -> dict[str, int]:
        sent = {}
        for node, content in contents.items():
            name = self.online[node].name
            self.tokens.setdefault(name, []).append(text_of(content, "opening", "token"))
            self._count += 1
            sent[f"{name}-{len(self.tokens[name])}"] = node
        return sent

    def answers(self, waiting: Iterable[str]) -> Iterator[tuple[str, RecordDict | Lost]]:
        for message in list(waiting):
            if message in self.replies:
                yield message, self.replies.pop(message)


class Here:
    """A client's process: echoes asks, and notes what it is told; answers `had` where it is asked."""

    def __init__(self, *, had: bool = True, arrival: bytes | None = None) -> None:
        self.told: list[Any] = []
        self._had = had
        self._arrival = arrival

    def control(self, data: bytes) -> bytes:
        verb, number = json.loads(data)
        self.told.append([verb, number])
        if verb == "settle" and self._arrival is not None:
            return self._arrival
        self._had = self._had or verb == "save"
        at = number if self._had else None
        return (
            Arrival(at, COUNTS).encode().encode() if verb == "settle" else json.dumps(at).encode()
        )


@contextmanager
def engine(keys: Path, mail: FakeMail, wait_seconds: float = 0.0) -> Iterator[SessionEngine]:
    tls = server_tls(keys)
    address = "127.0.0.1:0"
    patience = Patience(wait_seconds, 5.0)
    made = SessionEngine(
        cast(Mail, mail), OPENING, patience, bind=address, address=address, tls=tls
    )
    try:
        yield made
    finally:
        made.close(finished=False)


def come(made: SessionEngine, keys: Path, mail: FakeMail, name: str, here: Here) -> ClientThread:
    """Start a client with the newest token, and wait until it is connected."""
    handlers = {"message": lambda data: data, "control": here.control}
    port = made._sessions.port
    client = ClientThread(keys, port, name, mail.tokens[name][-1], handlers)
    assert made._sessions.wait([name], 10.0) == {name}
    return client


def asked(made: SessionEngine, *names: str) -> dict[str, bytes | Lost]:
    return dict(made.carry(dict.fromkeys(names, b"ask")))


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

        made._invite()
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
    monkeypatch.setattr("trillium.engines.distributed.time.monotonic", lambda: now)
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
