"""The session stream when nothing goes wrong: round trips, several clients, deadlines, the end."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from session_help import QUICK, ClientProcess, ClientThread, lost, one, server_tls, serving

from trillium.engines.frames import StreamConfig
from trillium.engines.stream import SessionServer
from trillium.errors import UserError
from trillium.federation.parts import Lost

CHUNK = QUICK.chunk_bytes


@pytest.fixture(scope="module")
def server(keys: Path) -> Iterator[SessionServer]:
    """A server with two clients in processes of their own."""
    with serving(keys) as server:
        clients = [ClientProcess(keys, server.port, name, server.invite(name)) for name in "ab"]
        assert server.wait("ab", 30) == {"a", "b"}
        yield server
        server.close("the tests are over")
        for client in clients:
            result = client.result()
            assert result["closed"] == "the tests are over"
            assert result["complete"]
            assert result["reconnects"] == 0
            assert result["asks"] > 0


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 5_000_000])
def test_bytes_come_back_as_they_were_sent(server: SessionServer, size: int) -> None:
    data = {name: os.urandom(size) for name in "ab"}
    assert dict(server.carry(data)) == data


@pytest.mark.parametrize("size", [0, CHUNK, 3 * CHUNK + 1])
def test_each_direction_alone(server: SessionServer, size: int) -> None:
    assert one(server, "a", bytes(size), channel="count") == str(size).encode()
    assert one(server, "b", str(size).encode(), channel="large") == bytes(size)


def test_a_quick_client_does_not_wait_for_a_slow_one(server: SessionServer) -> None:
    replies = server.carry({"a": b"1.0", "b": b"0.0"}, channel="slow")
    assert [name for name, _ in replies] == ["b", "a"]


def test_a_handler_that_raises(server: SessionServer) -> None:
    assert one(server, "a", channel="fail") == Lost(
        "fail failed: ValueError; its own log says more"
    )
    assert "there is no channel 'nothing'" in lost(one(server, "a", channel="nothing"))
    assert one(server, "a", b"on it goes") == b"on it goes"


def test_a_client_that_is_not_there(server: SessionServer) -> None:
    replies = dict(server.carry({"a": b"x", "nobody": b"x"}))
    assert replies["a"] == b"x"
    assert lost(replies["nobody"]) == "not connected: it has not joined yet"
    assert dict(server.carry({})) == {}
    assert server.clients == ["a", "b"]
    assert server.wait(["a", "nobody"], 0.05) == {"a"}


def test_a_deadline_leaves_the_client_connected(server: SessionServer) -> None:
    """The late reply of 1.5 s is discarded, and the ask after it gets its own."""
    replies = dict(server.carry({"a": b"1.5", "b": b"0"}, channel="slow", deadline_seconds=0.5))
    assert lost(replies["a"]) == "no reply within 0.5 s"
    assert replies["b"] == b"0"
    busy = lost(one(server, "a", deadline_seconds=0.1))
    assert busy == "still busy with an earlier ask, not free within 0.1 s"
    assert one(server, "a", b"next") == b"next"
    assert server.clients == ["a", "b"]


def test_a_caller_that_stops_early_leaves_the_rest(server: SessionServer) -> None:
    replies = server.carry({"a": b"0.5", "b": b"0"}, channel="slow")
    assert next(replies) == ("b", b"0")
    replies.close()  # type: ignore[attr-defined]
    assert one(server, "a", b"next") == b"next"


def test_what_is_posted_is_on_its_way_before_a_reply_is_wanted(keys: Path) -> None:
    came, seen = threading.Event(), []

    def note(data: bytes) -> bytes:
        seen.append(data)
        came.set()
        return data

    with serving(keys) as server:
        ClientThread(keys, server.port, "a", server.invite("a"), {"message": note})
        server.wait("a", 20)
        replies = server.post({"a": b"one", "nobody": b"one"})
        assert came.wait(20)
        assert one(server, "a", b"two") == b"two"
        found = dict(replies)
        assert found["a"] == b"one"
        assert "not connected" in lost(found["nobody"])
        assert seen == [b"one", b"two"], "a client answers in the order in which it was asked"
        server.carry({"a": b"three"})
        assert one(server, "a", b"four") == b"four"
        assert b"three" not in seen, "nobody has asked for its reply"


def test_what_is_posted_and_given_up_is_taken_back(keys: Path) -> None:
    free, seen = threading.Event(), []

    def wait(data: bytes) -> bytes:
        seen.append(data)
        free.wait(20)
        return data

    with serving(keys) as server:
        ClientThread(keys, server.port, "a", server.invite("a"), {"message": wait})
        server.wait("a", 20)
        first, second = server.post({"a": b"one"}), server.post({"a": b"two"})
        del second
        free.set()
        assert one(server, "a", b"three") == b"three"
        assert dict(first) == {"a": b"one"}
        assert seen == [b"one", b"three"]


def test_many_threads_at_once(server: SessionServer) -> None:
    def work(number: int) -> bool:
        data = {name: f"{number} {name}".encode() * number for name in "ab"}
        return dict(server.carry(data)) == data

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(200)))


def test_two_clients_work_at_the_same_time(keys: Path) -> None:
    both = threading.Barrier(2)

    def meet(data: bytes) -> bytes:
        both.wait(20)  # raises if the other never comes
        return data

    with serving(keys) as server:
        for name in "ab":
            ClientThread(keys, server.port, name, server.invite(name), {"message": meet})
        server.wait("ab", 20)
        assert dict(server.carry(dict.fromkeys("ab", b"x"))) == dict.fromkeys("ab", b"x")


def test_too_large_to_send_or_to_accept(keys: Path) -> None:
    small = QUICK.model_copy(update={"max_bytes": 100_000})
    large: dict[str, bytes | Lost] = {}
    with serving(keys, small) as server:
        handlers = {"large": lambda data: bytes(int(data))}
        client = ClientThread(keys, server.port, "a", server.invite("a"), handlers, small)
        greedy = ClientThread(keys, server.port, "b", server.invite("b"), handlers)
        server.wait("ab", 20)
        assert "the ask has 100001 bytes" in lost(one(server, "a", bytes(100_001)))
        large = dict(server.carry(dict.fromkeys("ab", b"100001"), channel="large"))
        assert "large failed: the reply has 100001 bytes" in lost(large["a"])
        assert lost(large["b"]) == (
            "it broke the protocol: REPLY of 100001 bytes, at most 100000 are accepted"
        )
        assert len(bytes(one(server, "a", b"100000", channel="large"))) == 100_000  # type: ignore[arg-type]
        assert server.clients == ["a"]
    assert client.summary().asks == 2
    assert "it broke the protocol" in greedy.summary().closed


def test_a_client_that_cannot_take_an_ask_leaves_and_says_why(keys: Path) -> None:
    with serving(keys) as server:
        config = QUICK.model_copy(update={"max_bytes": 1000})
        client = ClientThread(keys, server.port, "a", server.invite("a"), config=config)
        server.wait("a", 20)
        reason = lost(one(server, "a", bytes(2_000_000)))
        assert reason == "the client left: ASK of 2000000 bytes, at most 1000 are accepted"
        summary = client.summary()
        assert not summary.complete
        assert "ASK of 2000000 bytes" in summary.closed


def test_disconnect_and_close_tell_why(keys: Path) -> None:
    changes: list[tuple[str, str, str]] = []
    with serving(keys, on_change=lambda *change: changes.append(change)) as server:
        clients = {n: ClientThread(keys, server.port, n, server.invite(n)) for n in "ab"}
        server.wait("ab", 20)
        one(server, "a", bytes(10))
        server.disconnect("a", "thank you")
        server.disconnect("nobody", "whoever you are")
        assert clients["a"].summary().closed == "thank you"
        assert clients["a"].summary().bytes_up == clients["a"].summary().bytes_down == 10
        assert lost(one(server, "a")) == "not connected: thank you"
        assert server.clients == ["b"]
        server.close("all done")
        assert clients["b"].summary().closed == "all done"
        assert lost(one(server, "b")) == "not connected: all done"
        assert server.wait("b", 20) == set()
    assert sorted(change[:2] for change in changes[:2]) == [("a", "joined"), ("b", "joined")]
    assert changes[2:] == [("a", "lost", "thank you"), ("b", "lost", "all done")]


def test_close_while_a_client_is_busy(keys: Path) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def work(data: bytes) -> bytes:
        begun.set()
        go_on.wait(20)
        return bytes(1_000_000)

    with serving(keys) as server, ThreadPoolExecutor() as pool:
        client = ClientThread(keys, server.port, "a", server.invite("a"), {"message": work})
        server.wait("a", 20)
        asked = pool.submit(one, server, "a")
        assert begun.wait(20)
        server.close("time is up")
        assert lost(asked.result(20)) == "time is up"
        go_on.set()
        assert client.summary().closed == "time is up"


def test_each_log_record_names_the_client_and_none_the_token(
    keys: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="trillium.engines")
    with serving(keys) as server:
        token = server.invite("a")
        client = ClientThread(keys, server.port, "a", token, {"message": lambda data: bytes(-1)})
        server.wait("a", 20)
        assert isinstance(one(server, "a"), Lost)
        server.close("done")
        client.summary()
    records = [record for record in caplog.records if record.name.startswith("trillium.engines")]
    assert len(records) >= 5
    assert {getattr(record, "client", None) for record in records} == {"a"}
    assert token not in caplog.text


def test_an_address_that_is_taken(keys: Path) -> None:
    with serving(keys) as server, pytest.raises(UserError, match="cannot listen on it"):
        SessionServer(f"127.0.0.1:{server.port}", server_tls(keys))


def test_units_and_limits_of_the_config() -> None:
    with pytest.raises(ValueError, match="chunk_bytes"):
        StreamConfig(chunk_bytes=100 * 1024**2)
    with pytest.raises(ValueError, match="timeout"):
        StreamConfig(timeout=3)  # type: ignore[call-arg]
