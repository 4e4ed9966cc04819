"""The shipped nginx.conf in front of the session port: who gets through, and who does not."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from session_help import QUICK, ClientThread, one, server_tls

from trillium.deploy.folder import write_app
from trillium.deploy.processes import free_port, port_taken
from trillium.engines.stream import SessionServer

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
MODULE = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
PER_ADDRESS = 20  # of nginx.conf
ELSEWHERE = "127.0.0.2"

pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")


@contextmanager
def proxied(keys: Path, folder: Path, preread: str = "10s") -> Iterator[tuple[SessionServer, int]]:
    """Start sessions and the proxy as it is shipped; yield the server and the port of the proxy."""
    outer = free_port("127.0.0.1")
    with SessionServer("127.0.0.1:0", server_tls(keys), QUICK) as server:
        write_app(
            folder,
            recipe_text="",
            settings={
                "session-address": f"127.0.0.1:{outer}",
                "session-bind": f"127.0.0.1:{server.port}",
            },
            names=["a"],
        )
        (folder / "keys").symlink_to(keys)
        home, config = folder / "server" / "proxy", folder / "proxy" / "nginx.conf"
        home.mkdir(parents=True)
        text = config.read_text()
        for given, here in (("8443", str(free_port("127.0.0.1", {outer}))), ("10s", preread)):
            assert given in text
            text = text.replace(given, here)
        config.write_text(text)
        load = f"load_module {MODULE}; " if MODULE.exists() else ""
        words = [str(NGINX), "-p", str(home), "-c", str(config), "-g", f"{load}daemon off;"]
        log = (folder / "log").open("wb")
        with log, subprocess.Popen(words, stderr=log) as nginx:
            try:
                while not port_taken("127.0.0.1", outer):
                    assert nginx.poll() is None, (folder / "log").read_text()
                    time.sleep(0.05)
                yield server, outer
            finally:
                nginx.terminate()


def closed(connection: socket.socket, seconds: float) -> bool:
    """Return whether the other side closes a connection in time."""
    connection.settimeout(seconds)
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False


def test_certificates_of_both_sides_pass_and_a_crowd_of_one_address_does_not(
    keys: Path, tmp_path: Path
) -> None:
    with proxied(keys, tmp_path / "federation") as (server, port), ExitStack() as crowd:
        a = ClientThread(keys, port, "a", server.invite("a"))
        assert server.wait(["a"], 10) == {"a"}
        assert one(server, "a", b"x" * 3_000_000) == b"x" * 3_000_000
        stranger = ClientThread(keys, port, "b", server.invite("c"))
        assert "token" in stranger.refusal()  # the name is that of its certificate
        idle = [
            crowd.enter_context(socket.create_connection(("127.0.0.1", port), 5.0, (ELSEWHERE, 0)))
            for _ in range(PER_ADDRESS + 5)
        ]
        assert all(closed(connection, 5.0) for connection in idle[PER_ADDRESS:])
        assert not closed(idle[0], 0.2)
        b = ClientThread(keys, port, "b", server.invite("b"))  # of another address
        assert server.wait(["b"], 10) == {"b"}
        assert one(server, "a") == one(server, "b") == b"ask"
        server.close("done")
        assert a.summary().complete
        assert b.summary().complete
        lines = (tmp_path / "federation/server/proxy/sessions.log").read_text().splitlines()
        assert sum(f" {ELSEWHERE} 503 " in line for line in lines) == 5


def test_who_begins_no_tls_never_reaches_the_server(keys: Path, tmp_path: Path) -> None:
    with proxied(keys, tmp_path / "federation", preread="1s") as (server, port):
        with socket.create_connection(("127.0.0.1", port), 5.0) as silent:
            assert closed(silent, 5.0)
        with socket.create_connection(("127.0.0.1", port), 5.0) as plain:
            plain.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert closed(plain, 5.0)
        log = (tmp_path / "federation/server/proxy/sessions.log").read_text().splitlines()
        assert [line.rpartition(" ")[2] for line in log] == ["-", "-"]
        a = ClientThread(keys, port, "a", server.invite("a"))
        assert server.wait(["a"], 10) == {"a"}  # through the same door
        server.close("done")
        assert a.summary().complete
