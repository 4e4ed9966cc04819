"""What the stream's tests share: keys, client processes and threads, a link that can be cut."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import grpc

from trillium.engines.frames import StreamConfig
from trillium.engines.secure import METHOD, SERVICE, ClientTLS, ServerTLS, client_options
from trillium.engines.session import Handler, SessionRefused, Summary, serve_session
from trillium.engines.stream import SessionServer
from trillium.federation.parts import Lost

HERE = Path(__file__).parent
QUICK = StreamConfig(
    hello_seconds=5,
    connect_seconds=10,
    reconnect_seconds=10,
    close_seconds=2,
    chunk_bytes=64 * 1024,
)
ECHO: dict[str, Handler] = {"message": lambda data: data}


@cache
def server_tls(folder: Path) -> ServerTLS:
    return ServerTLS.read(folder / "ca.crt", folder / "server.crt", folder / "server.key")


@cache
def client_tls(folder: Path, name: str) -> ClientTLS:
    node = folder / "nodes" / name
    return ClientTLS.read(folder / "ca.crt", node / "client.crt", node / "client.key")


@contextmanager
def serving(folder: Path, config: StreamConfig = QUICK, **options: Any) -> Iterator[SessionServer]:
    with SessionServer("127.0.0.1:0", server_tls(folder), config, **options) as server:
        yield server


def one(server: SessionServer, name: str, data: bytes = b"ask", **options: Any) -> bytes | Lost:
    """Ask one client."""
    ((asked, reply),) = server.carry({name: data}, **options)
    assert asked == name
    return reply


def lost(reply: bytes | Lost) -> str:
    assert isinstance(reply, Lost)
    return reply.reason


class ClientProcess:
    """A client in a process of its own."""

    def __init__(self, folder: Path, port: int, name: str, token: str, **config: Any) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "session_client.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        settings = {
            "address": f"127.0.0.1:{port}",
            "folder": str(folder),
            "name": name,
            "token": token,
            "config": {**QUICK.model_dump(), **config},
        }
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(settings))
        self.process.stdin.close()
        self.process.stdin = None

    def result(self) -> dict[str, Any]:
        """Wait for the end and return the summary, or why it was refused."""
        out, log = self.process.communicate(timeout=30)
        assert self.process.returncode == 0, log
        summary: dict[str, Any] = json.loads(out)
        return {**summary, "log": log}

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


class ClientThread:
    """A client in a thread, for what needs no process of its own."""

    def __init__(
        self,
        folder: Path,
        port: int,
        name: str,
        token: str,
        handlers: Mapping[str, Handler] = ECHO,
        config: StreamConfig = QUICK,
    ) -> None:
        self._ended: list[Summary | SessionRefused] = []
        arguments = (f"127.0.0.1:{port}", client_tls(folder, name), name, token, handlers, config)
        self._thread = threading.Thread(target=self._run, args=arguments, daemon=True)
        self._thread.start()

    def _run(self, *arguments: Any) -> None:
        try:
            self._ended.append(serve_session(*arguments))
        except SessionRefused as refused:
            self._ended.append(refused)

    def summary(self) -> Summary:
        result = self._end()
        assert isinstance(result, Summary), result
        return result

    def refusal(self) -> str:
        result = self._end()
        assert isinstance(result, SessionRefused), result
        return result.reason

    def _end(self) -> Summary | SessionRefused:
        self._thread.join(30)
        assert self._ended, "the session has not ended"
        return self._ended[0]


def raw_stream(
    port: int, tls: ClientTLS | grpc.ChannelCredentials, frames: Callable[[], Iterator[bytes]]
) -> tuple[list[bytes], grpc.StatusCode, str]:
    """Send any bytes as a client would; return what came back and how it ended."""
    credentials = tls.credentials() if isinstance(tls, ClientTLS) else tls
    options = client_options(QUICK)
    received: list[bytes] = []
    with grpc.secure_channel(f"127.0.0.1:{port}", credentials, options) as channel:
        call = channel.stream_stream(f"/{SERVICE}/{METHOD}")(frames(), timeout=20)
        with suppress(grpc.RpcError):
            received.extend(call)
        return received, call.code(), call.details()


class Proxy:
    """A TCP link to a port that can be cut, cut without a word, slowed down, and restored."""

    def __init__(self, target: int, bytes_per_second: int = 0) -> None:
        self._target, self._bytes_per_second = target, bytes_per_second
        self.delay_seconds = 0.0
        self._sockets: list[socket.socket] = []
        self._dead: set[socket.socket] = set()
        self._up, self._silent = True, False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._shrink(self._listener)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Close all connections and refuse new ones."""
        self._up = False
        for end in self._sockets:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def swallow(self) -> None:
        """Let what is sent disappear, without closing anything."""
        self._silent = True
        self._dead.update(self._sockets)

    def restore(self) -> None:
        """Carry new connections; those that were cut stay cut."""
        self._up, self._silent = True, False

    def close(self) -> None:
        """End everything."""
        self.cut()
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                if not self._up or not self.admits(near):
                    near.close()
                    continue
                far = socket.socket()
                self._shrink(far)
                try:
                    far.connect(("127.0.0.1", self._target))
                except OSError:  # nobody listens just now
                    near.close()
                    continue
                self._sockets += [near, far]
                if self._silent:
                    self._dead |= {near, far}
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def admits(self, near: socket.socket) -> bool:
        """Return whether a new connection is carried."""
        return True

    def changed(self, data: bytes) -> bytes:
        """Return what arrives of what was sent."""
        return data

    def _shrink(self, end: socket.socket) -> None:
        """Let a slow link hold little, as a real one does."""
        if self._bytes_per_second:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 14)

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 14):
                if self._bytes_per_second:
                    time.sleep(len(data) / self._bytes_per_second)
                time.sleep(self.delay_seconds)
                if source not in self._dead:
                    sink.sendall(self.changed(data))
        if source not in self._dead:
            with suppress(OSError):
                sink.shutdown(socket.SHUT_RDWR)
