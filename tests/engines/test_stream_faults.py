"""The session stream when processes die, stop and come back, and links are cut."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from session_help import (
    ECHO,
    HERE,
    QUICK,
    ClientProcess,
    ClientThread,
    Proxy,
    client_tls,
    lost,
    one,
    server_tls,
    serving,
)

from trillium.engines.session import SessionRefused, serve_session
from trillium.engines.stream import SessionServer

SENSITIVE = QUICK.model_copy(
    update={"keepalive_seconds": 0.5, "keepalive_timeout_seconds": 0.5, "connect_seconds": 20}
)


@contextmanager
def proxied(server: SessionServer, bytes_per_second: int = 0) -> Iterator[Proxy]:
    proxy = Proxy(server.port, bytes_per_second)
    try:
        yield proxy
    finally:
        proxy.close()


def until(true: object, seconds: float = 20) -> None:
    """Wait for something that nothing announces."""
    assert callable(true)
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_client_that_is_killed_in_the_middle_of_an_ask(keys: Path) -> None:
    with serving(keys) as server, ThreadPoolExecutor() as pool:
        a = ClientProcess(keys, server.port, "a", server.invite("a"))
        b = ClientProcess(keys, server.port, "b", server.invite("b"))
        server.wait("ab", 30)
        asks = pool.submit(dict, server.carry({"a": b"60", "b": b"1"}, channel="slow"))
        time.sleep(0.3)
        a.kill()
        replies = asks.result(20)
        assert lost(replies["a"]) == "the link was lost"
        assert replies["b"] == b"1"
        assert lost(one(server, "a")) == "not connected: the link was lost"
        assert one(server, "b") == b"ask"
        # A new process of the same client, with a new token.
        a = ClientProcess(keys, server.port, "a", server.invite("a"))
        assert server.wait("ab", 30) == {"a", "b"}
        assert one(server, "a") == b"ask"
        server.close("done")
        assert a.result()["closed"] == b.result()["closed"] == "done"


def test_a_straggler_that_is_stopped_and_goes_on(keys: Path) -> None:
    with serving(keys) as server:
        client = ClientProcess(keys, server.port, "a", server.invite("a"))
        server.wait("a", 30)
        os.kill(client.process.pid, signal.SIGSTOP)
        large = bytes(8_000_000)  # more than the buffers on the way hold
        assert lost(one(server, "a", large, deadline_seconds=0.5)) == "no reply within 0.5 s"
        assert "still busy" in lost(one(server, "a", deadline_seconds=0.1))
        os.kill(client.process.pid, signal.SIGCONT)
        assert one(server, "a", b"next") == b"next"
        server.close("done")
        result = client.result()
        assert (result["closed"], result["asks"], result["reconnects"]) == ("done", 2, 0)


def test_close_does_not_wait_for_a_client_that_is_stopped(keys: Path) -> None:
    with serving(keys, QUICK.model_copy(update={"close_seconds": 0.2})) as server:
        client = ClientProcess(keys, server.port, "a", server.invite("a"), connect_seconds=1)
        server.wait("a", 30)
        os.kill(client.process.pid, signal.SIGSTOP)
        assert "no reply" in lost(one(server, "a", bytes(8_000_000), deadline_seconds=0.2))
        server.close("done")  # returns, though the ask still fills the link
        assert server.clients == []
    client.kill()


def test_a_client_comes_back_after_its_link_was_cut(keys: Path) -> None:
    with serving(keys) as server, proxied(server) as link:
        client = ClientProcess(keys, link.port, "a", server.invite("a"))
        server.wait("a", 30)
        for number in range(1, 3):  # the second time with the token of the first return
            assert one(server, "a") == b"ask"
            link.cut()
            until(lambda: not server.clients)
            assert "not connected" in lost(one(server, "a"))
            link.restore()
            assert server.wait("a", 20) == {"a"}
            assert one(server, "a", str(number).encode()) == str(number).encode()
        server.close("done")
        result = client.result()
        assert (result["closed"], result["complete"], result["reconnects"]) == ("done", True, 2)
        assert result["asks"] == 4


def test_a_link_that_is_cut_in_the_middle_of_an_ask(keys: Path) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def work(data: bytes) -> bytes:
        if data == b"ask":
            begun.set()
            go_on.wait(20)
        return data

    with serving(keys) as server, proxied(server) as link, ThreadPoolExecutor() as pool:
        client = ClientThread(keys, link.port, "a", server.invite("a"), {"message": work})
        server.wait("a", 20)
        asked = pool.submit(one, server, "a")
        assert begun.wait(20)
        link.cut()
        assert lost(asked.result(20)) == "the link was lost"
        link.restore()
        go_on.set()  # the reply has nowhere to go
        assert server.wait("a", 20) == {"a"}
        assert one(server, "a", b"next") == b"next"
        server.close("done")
        assert client.summary().reconnects == 1


def test_a_link_that_is_cut_without_a_word(keys: Path) -> None:
    with serving(keys, SENSITIVE) as server, proxied(server) as link:
        client = ClientThread(keys, link.port, "a", server.invite("a"), ECHO, SENSITIVE)
        server.wait("a", 20)
        link.swallow()
        assert lost(one(server, "a", deadline_seconds=20)) == "the link was lost"
        link.restore()
        assert server.wait("a", 20) == {"a"}
        assert one(server, "a") == b"ask"
        server.close("done")
        assert client.summary().reconnects == 1


def test_a_slow_link_is_not_a_dead_one(keys: Path) -> None:
    """The ask takes longer than a probe may stay unanswered."""
    changed = {"keepalive_timeout_seconds": 2.0, "window_bytes": 256 * 1024}
    config = SENSITIVE.model_copy(update=changed)
    with serving(keys, config) as server, proxied(server, bytes_per_second=1_000_000) as link:
        handlers = {"message": lambda data: str(len(data)).encode()}
        client = ClientThread(keys, link.port, "a", server.invite("a"), handlers, config)
        server.wait("a", 20)
        assert one(server, "a", bytes(5_000_000)) == b"5000000"
        server.close("done")
        assert client.summary().reconnects == 0


def test_a_client_that_comes_back_before_its_old_link_is_missed(keys: Path) -> None:
    """The client notices the silent cut, the server does not: the new link takes over."""
    changes: list[tuple[str, str, str]] = []
    slow = QUICK.model_copy(update={"keepalive_seconds": 600.0})
    with (
        serving(keys, slow, on_change=lambda *change: changes.append(change)) as server,
        proxied(server) as link,
    ):
        client = ClientThread(keys, link.port, "a", server.invite("a"), ECHO, SENSITIVE)
        server.wait("a", 20)
        link.swallow()
        time.sleep(0.1)
        link.restore()  # for new connections
        until(lambda: len(changes) == 3)
        assert [change[1] for change in changes] == ["joined", "lost", "joined"]
        assert changes[1][2] == "the client came back on a new link"
        assert one(server, "a") == b"ask"
        server.close("done")
        assert client.summary().reconnects == 1


def test_a_client_gives_up_after_a_time(keys: Path) -> None:
    short = QUICK.model_copy(update={"reconnect_seconds": 0.5, "connect_seconds": 0.5})
    with serving(keys) as server, proxied(server) as link:
        client = ClientThread(keys, link.port, "a", server.invite("a"), ECHO, short)
        server.wait("a", 20)
        link.cut()
        summary = client.summary()
        assert summary.closed.startswith("no way back within 0.5 s: ")
        assert not summary.complete
        with pytest.raises(SessionRefused, match=r"no session with .* within 0.5 s"):
            serve_session(f"127.0.0.1:{link.port}", client_tls(keys, "a"), "a", "x", ECHO, short)


def test_a_server_that_never_answers(keys: Path) -> None:
    short = QUICK.model_copy(update={"connect_seconds": 0.5})
    with serving(keys) as server, proxied(server) as link:
        link.swallow()
        with pytest.raises(SessionRefused, match=r"within 0.5 s"):
            serve_session(f"127.0.0.1:{link.port}", client_tls(keys, "a"), "a", "x", ECHO, short)


def test_a_server_that_is_killed_and_started_again(keys: Path) -> None:
    command = [sys.executable, str(HERE / "session_server.py"), str(keys)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port, token = process.stdout.readline().split()
        client = ClientThread(keys, int(port), "a", token)
        assert process.stdout.readline().strip() == "('a', b'hello')"
        process.kill()
    with SessionServer(f"127.0.0.1:{port}", server_tls(keys), QUICK) as server:
        summary = client.summary()
        assert "the server refused to restore it: the token is not valid" in summary.closed
        assert (summary.asks, summary.complete) == (1, False)
        again = ClientThread(keys, server.port, "a", server.invite("a"))
        assert server.wait("a", 20) == {"a"}
        assert one(server, "a") == b"ask"
        server.close("done")
        assert again.summary().closed == "done"
