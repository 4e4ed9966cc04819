"""The engine of single Flower messages: which round each node's state is of, who owes, what is late."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

pytest.importorskip("flwr", reason="Flower is not installed (extra: deploy)")

from flwr.app import ConfigRecord, RecordDict
from flwr.serverapp import Grid

from trillium.engines import messages, patience, roster
from trillium.engines.messages import MessageEngine
from trillium.engines.opening import Arrival, Opening
from trillium.engines.patience import OVER, OWES, Grace, Patience
from trillium.engines.roster import Mail, text_of, with_bytes
from trillium.federation.parts import Lost


def sent(content: RecordDict, node: int, kind: str, ttl: float) -> Any:
    """Stand in for a message of Flower's, which can only be made within a run of it."""
    return SimpleNamespace(content=content, metadata=SimpleNamespace(node=node, kind=kind))


class Nodes:
    """Flower's grid, and nodes that keep a state: by name, the round that it is of, or nothing."""

    def __init__(self, **kept: int | None) -> None:
        self.kept: dict[str, int | None] = dict(kept)
        self.since = dict.fromkeys(kept, "t0")
        self.mute: set[str] = set()
        self.asked: list[tuple[str, str]] = []
        self._waiting: dict[str, tuple[str, RecordDict]] = {}

    def get_nodes(self) -> list[Any]:
        return [
            SimpleNamespace(node_id=number, name=name, last_activated_at=self.since[name])
            for number, name in enumerate(self.kept)
        ]

    def push_messages(self, messages: Iterable[Any]) -> list[str]:
        ids = []
        for message in messages:
            name = [*self.kept][message.metadata.node]
            verb = message.metadata.kind.rpartition(".")[2]
            self.asked.append((name, verb))
            ids.append(f"message-{len(self.asked)}")
            self._waiting[ids[-1]] = name, self._answer(name, verb, message.content)
        return ids

    def _answer(self, name: str, verb: str, content: RecordDict) -> RecordDict:
        number = Opening.decode(text_of(content, "opening", "opening")).number
        if verb == "settle":
            held = self.kept[name]
            found = None if held is None else min(held, number)
            arrival = Arrival(found, {}).encode()
            return RecordDict({"node": ConfigRecord({"name": name, "arrival": arrival})})
        if verb == "ask":
            self.kept[name] = number + 1
            record = RecordDict({"node": ConfigRecord({"kept": json.dumps(number + 1)})})
            return with_bytes(record, b"reply")
        return RecordDict({"summary": ConfigRecord({"closed": "forgotten"})})

    def pull_messages(self, ids: Sequence[str]) -> list[Any]:
        return [
            SimpleNamespace(
                metadata=SimpleNamespace(reply_to_message_id=sent),
                has_error=lambda: False,
                content=self._waiting.pop(sent)[1],
            )
            for sent in ids
            if sent in self._waiting and self._waiting[sent][0] not in self.mute
        ]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (roster, patience):
        monkeypatch.setattr(module, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(roster, "Message", sent)
    monkeypatch.setattr(messages, "RETRY_SECONDS", 0.0)


def engine(nodes: Nodes, **waits: Any) -> MessageEngine:
    chosen = Patience(0.0, 0.2, **waits)
    return MessageEngine(Mail(cast(Grid, nodes)), Opening("run", {}, [], 0), chosen)


def ask(made: MessageEngine, *names: str) -> dict[str, bytes | Lost]:
    return dict(made.carry(dict.fromkeys(names, b"ask")))


def test_each_answer_says_what_was_kept() -> None:
    nodes = Nodes(a=None, b=None)
    made = engine(nodes)
    gathered = made.gather(2)
    assert gathered.present == gathered.newcomers == {"a", "b"}
    assert made.save(0).held == {}
    assert ask(made, "a") == {"a": b"reply"}
    assert made.save(1).held == {"a": 1}
    assert ask(made, "a", "b") == {"a": b"reply", "b": b"reply"}
    saved = made.save(2)
    assert saved.held == {"a": 2, "b": 2}
    assert not saved.lost


def test_a_node_that_came_back_with_less_is_told_once() -> None:
    nodes = Nodes(a=None, b=None)
    made = engine(nodes)
    made.gather(2)
    for number in (1, 2):
        ask(made, "a", "b")
        made.save(number)
    nodes.kept["b"], nodes.since["b"] = 1, "t1"  # a backup was put back, and it was started anew
    gathered = made.gather(2)
    assert gathered.behind == {
        "b": "it came back with its state of round 1, and had kept that of round 2"
    }
    assert gathered.newcomers == {"b"}
    assert made.save(2).held == {"a": 2}
    assert made.gather(2).behind == {}


def test_all_settle_anew_when_a_round_is_undone() -> None:
    nodes = Nodes(a=None)
    made = engine(nodes)
    made.gather(1)
    for number in (1, 2):
        ask(made, "a")
        made.save(number)
    made.restore(1, {"a": 1})
    made.gather(1)
    assert nodes.asked[-1] == ("a", "settle")
    assert made.save(1).held == {"a": 1}


def test_who_owes_an_answer_is_not_asked_again_until_it_comes() -> None:
    nodes = Nodes(a=None, b=None)
    made = engine(nodes)
    made.gather(2)
    nodes.mute = {"b"}
    replies = ask(made, "a", "b")
    assert replies["b"] == Lost("no reply within 0.2 s")
    assert ask(made, "a", "b")["b"] == Lost(OWES, sent=False)
    assert made.gather(1).present == {"a"}
    assert nodes.asked.count(("b", "ask")) == 1
    assert made.late() == []
    nodes.mute = set()
    assert made.gather(2).present == {"a", "b"}
    assert made.late() == [("b", len(b"reply"))]
    assert made.late() == []
    # One that was started anew knows of no earlier message, and owes nothing.
    nodes.mute = {"b"}
    ask(made, "b")
    nodes.mute, nodes.since["b"] = set(), "t1"
    nodes._waiting.clear()
    assert made.gather(2).present == {"a", "b"}
    assert ask(made, "b") == {"b": b"reply"}


def test_the_grace_and_the_end_of_a_round() -> None:
    nodes = Nodes(a=None, b=None)
    made = engine(nodes, round_seconds=0.1, grace=Grace(1, 0.05))
    made.gather(2)
    nodes.mute = {"b"}
    replies = ask(made, "a", "b")
    assert replies["b"] == Lost("no reply within 0.05 s of the 1 that are enough")
    nodes.mute = {"a"}
    ask(made, "a")
    nodes.mute = set()
    assert ask(made, "a")["a"] == Lost(OVER, sent=False)
