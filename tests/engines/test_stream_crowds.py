"""A crowd at the session port: connections that never say who they are, and many of one certificate."""

from __future__ import annotations

import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from session_help import QUICK, ClientThread, client_tls, raw_stream, serving

from trillium.engines import descriptors
from trillium.engines.descriptors import RESERVED, connections

# A server that may have few files open; it says what it can still do when it is asked.
SERVER = """
import json, resource, sys, time
from pathlib import Path
folder, limit, hello = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
resource.setrlimit(resource.RLIMIT_NOFILE, (limit // 2, limit))
sys.path.insert(0, sys.argv[4])
from session_help import QUICK, one, server_tls
from trillium.engines.stream import SessionServer
config = QUICK.model_copy(update={"hello_seconds": hello, "max_clients": 8})
with SessionServer("127.0.0.1:0", server_tls(folder), config) as server:
    print(server.port, server.invite("a"), server.invite("b"), flush=True)
    for line in sys.stdin:
        name = line.strip()
        server.wait([name], 20.0)
        reply = one(server, name, b"still here?", deadline_seconds=20.0)
        files = [open(Path(sys.argv[1]) / "ca.crt") for _ in range(64)]
        for file in files:
            file.close()
        print(json.dumps([isinstance(reply, bytes), len(files)]), flush=True)
"""
LIMIT = 600
IDLE = 1500
HELLO_SECONDS = 6.0


def test_idle_connections_leave_room_for_files_and_for_those_who_are_in(keys: Path) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < IDLE + 500:
        pytest.skip("this machine allows too few open files to try")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    here = str(Path(__file__).parent)
    words = [sys.executable, "-c", SERVER, str(keys), str(LIMIT), str(HELLO_SECONDS), here]
    with (
        subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server,
        ExitStack() as crowd,
    ):
        assert server.stdin is not None
        assert server.stdout is not None

        def ask(name: str) -> str:
            assert server.stdin is not None
            assert server.stdout is not None
            server.stdin.write(f"{name}\n")
            server.stdin.flush()
            return server.stdout.readline().strip()

        number, first, second = server.stdout.readline().split()
        port = int(number)
        ClientThread(keys, port, "a", first)
        assert ask("a") == "[true, 64]"
        for _ in range(IDLE):
            idle = crowd.enter_context(socket.socket())
            idle.settimeout(5.0)
            idle.connect(("127.0.0.1", port))
        assert ask("a") == "[true, 64]"
        # They are cut off when they have said nothing in time, and others can come.
        time.sleep(HELLO_SECONDS)
        ClientThread(keys, port, "b", second)
        assert ask("b") == "[true, 64]"
        server.stdin.close()
        server.wait(20)


def test_one_certificate_does_not_take_all_streams(keys: Path) -> None:
    config = QUICK.model_copy(update={"hello_seconds": 3.0})
    with serving(keys, config) as server:

        def silent() -> Iterator[bytes]:
            time.sleep(2.0)
            yield b""

        ends: list[str] = []

        def hold() -> None:
            ends.append(raw_stream(server.port, client_tls(keys, "a"), silent)[2])

        threads = [threading.Thread(target=hold) for _ in range(8)]
        for thread in threads:
            thread.start()
        time.sleep(1.0)
        b = ClientThread(keys, server.port, "b", server.invite("b"))
        assert server.wait(["b"], 5) == {"b"}
        for thread in threads:
            thread.join()
        assert ends.count("too many connections with this certificate") == 4
        server.close("done")
        assert b.summary().complete


def test_descriptors_are_kept_for_files(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = sum(1 for _ in descriptors.OPEN.iterdir())
    limits = (4096, 4096)
    monkeypatch.setattr(resource, "getrlimit", lambda what: limits)
    assert connections(100) == 100
    assert 4096 - RESERVED - 2 * taken - 8 <= connections(10**6) <= 4096 - RESERVED
    limits = (64, 64)
    assert connections(100) == 1
