"""The local engine: bytes through, one after the other, failures contained."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiny import distance, federation
from trillium.experiment.folder import RunFolder, new_folder
from trillium.experiment.run import Experiment
from trillium.federation.client import Client
from trillium.federation.failed import RoundFailed
from trillium.federation.local import LocalEngine
from trillium.wire.message import Message, decode

HALF = ("data.num_clients=5", "fleet.clients_per_round=3", "fleet.min_replies=1", "rounds=3")


def break_client(fed: Experiment, name: str) -> None:
    def fail(client: Client, message: Message) -> Message:
        raise ValueError("no such batch")

    (client,) = [client for client in fed.clients if client.name == name]
    client.verbs = dict.fromkeys(client.verbs, fail)


def test_clients_are_sorted_and_asked_in_the_order_of_the_requests(hub: Path) -> None:
    fed = federation(hub)
    engine = LocalEngine(fed.clients[::-1])
    assert engine.clients == ["client-0", "client-1", "client-2"]
    ask = fed.config.wire.pack(Message("nothing", meta={"round": 1}), "down").data
    replies = list(engine.carry({"client-2": ask, "client-0": ask}))
    assert [name for name, _ in replies] == ["client-2", "client-0"]
    for _, reply in replies:
        assert decode(reply).verb == "error"
        assert "'nothing' is not one of fold, train" in decode(reply).meta["reason"]


def test_replies_come_one_by_one(hub: Path) -> None:
    """The second client is not asked before the first reply is taken."""
    fed = federation(hub)
    ask = fed.config.wire.pack(Message("nothing", meta={"round": 7}), "down").data
    replies = fed.fleet.engine.carry(dict.fromkeys(fed.fleet.engine.clients, ask))
    next(replies)
    assert [client.meter.read().flops for client in fed.clients] == [0.0] * 3
    replies.close()  # type: ignore[attr-defined]


def test_partial_participation_end_to_end(hub: Path) -> None:
    fed = federation(hub, *HALF, "fleet.failure_rate=0.3")
    history = fed.run()
    assert [line["asked"] for line in history] == [0, 3, 3, 3]
    missing = [line["missing"] for line in history[1:]]
    assert any(missing), "with this seed somebody fails; choose another rate if the draw changes"
    for line in history[1:]:
        assert line["replied"] == 3 - len(line["missing"])
        assert all("failure_rate=0.3" in reason for reason in line["missing"].values())
    up = [e for e in fed.fleet.ledger.entries if e.direction == "up"]
    assert len(up) == sum(line["replied"] for line in history)
    assert distance(fed.server.state, fed.model.initial) > 0
    again = federation(hub, *HALF, "fleet.failure_rate=0.3")
    assert [line["missing"] for line in again.run()[1:]] == missing
    assert distance(again.server.state, fed.server.state) == 0.0


def test_a_client_that_raises_is_missing_with_its_reason(hub: Path, tmp_path: Path) -> None:
    fed = federation(hub, "fleet.min_replies=2")
    folder = RunFolder(new_folder(tmp_path, "run"), "fedllm")
    fed.folder = folder
    break_client(fed, "client-1")
    fed.run()
    lines = (folder.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 3
    assert '"missing": {}' in lines[0].replace('":', '": ').replace("  ", " ")
    for line in lines[1:]:
        assert "ValueError: no such batch" in line
        assert "client-1" in line


def test_too_few_replies_end_the_run_and_keep_what_was_measured(hub: Path, tmp_path: Path) -> None:
    fed = federation(hub, "fleet.min_replies=3")
    folder = RunFolder(new_folder(tmp_path, "run"), "fedllm")
    fed.folder = folder
    break_client(fed, "client-2")
    with pytest.raises(RoundFailed, match="round 1: 2 of 3 clients are left, min_replies is 3"):
        fed.run()
    assert len((folder.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()) == 1
    statuses = [path.read_text(encoding="utf-8") for path in folder.path.glob("*.json")]
    assert any("RoundFailed" in text and "no such batch" in text for text in statuses)


def test_a_broken_client_does_not_touch_the_others(hub: Path) -> None:
    broken, without = federation(hub, "fleet.min_replies=2"), federation(hub)
    break_client(broken, "client-2")
    broken.run()
    (gone,) = [client for client in without.clients if client.name == "client-2"]
    without.clients.remove(gone)
    without.fleet.engine = LocalEngine(without.clients)
    without.run()
    assert distance(broken.server.state, without.server.state) == 0.0


def test_a_client_that_missed_the_public_set_gets_it_later(hub: Path) -> None:
    fed = federation(hub, "framework=kd", "fleet.min_replies=1", "rounds=2")
    (late,) = [client for client in fed.clients if client.name == "client-1"]
    receive = late.verbs["receive_public"]

    def fail_once(client: Client, message: Message) -> Message:
        client.verbs = {**client.verbs, "receive_public": receive}
        raise ValueError("not now")

    late.verbs = {**late.verbs, "receive_public": fail_once}
    history = fed.run()
    assert "not now" in history[0]["missing"]["client-1"]
    assert [line["missing"] for line in history[1:]] == [{}, {}]
    once = [e.client for e in fed.fleet.ledger.entries if e.purpose == "once"]
    assert once.count("client-1") == 4, "two asks and two answers, the first of them an error"
    assert once.count("client-0") == 2
