"""Who is not let in, and who is put out: certificates, tokens, names, versions, garbage."""

from __future__ import annotations

import queue
import resource
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
from session_help import QUICK, ClientThread, client_tls, lost, one, raw_stream, serving

from trillium.deploy.keys import make_keys
from trillium.engines.frames import HEADER, Kind, control, encode, parse, read_control
from trillium.engines.secure import ClientTLS
from trillium.engines.session import SessionRefused, serve_session
from trillium.engines.stream import SessionServer

IMPATIENT = QUICK.model_copy(update={"connect_seconds": 1.0})
DENIED = grpc.StatusCode.PERMISSION_DENIED
BROKEN = grpc.StatusCode.INVALID_ARGUMENT


@pytest.fixture
def changes() -> list[tuple[str, str, str]]:
    return []


@pytest.fixture
def server(keys: Path, changes: list[tuple[str, str, str]]) -> Iterator[SessionServer]:
    with serving(keys, on_change=lambda *change: changes.append(change)) as server:
        yield server


def serves_on(server: SessionServer, keys: Path) -> None:
    """Check that the server still lets a client in."""
    client = ClientThread(keys, server.port, "c", server.invite("c"))
    server.wait("c", 20)
    assert one(server, "c", b"still here") == b"still here"
    server.disconnect("c", "that was it")
    client.summary()


def connect(server: SessionServer, tls: ClientTLS, name: str, token: str) -> str:
    """Try to begin a session and return why it was refused."""
    with pytest.raises(SessionRefused) as refused:
        serve_session(f"127.0.0.1:{server.port}", tls, name, token, {}, IMPATIENT)
    return refused.value.reason


def hello(server: SessionServer, *frames: bytes, keys: Path) -> tuple[grpc.StatusCode, str]:
    """Send frames and keep the stream open; return how the server ended it."""
    done = raw_stream(server.port, client_tls(keys, "a"), lambda: _held(iter(frames)))
    return done[1], done[2]


def _held(frames: Iterator[bytes]) -> Iterator[bytes]:
    yield from frames
    threading.Event().wait(3)


def test_certificates_of_another_authority(
    server: SessionServer, keys: Path, tmp_path: Path
) -> None:
    make_keys(tmp_path, ["127.0.0.1"], ["a"])
    stranger, ours = client_tls(tmp_path, "a"), client_tls(keys, "a")
    token = server.invite("a")
    fooled = ClientTLS(ours.authority, stranger.certificate, stranger.key)
    assert "within 1 s" in connect(server, fooled, "a", token)
    wary = ClientTLS(stranger.authority, ours.certificate, ours.key)
    assert "CERTIFICATE_VERIFY_FAILED" in connect(server, wary, "a", token)
    serves_on(server, keys)


def test_no_certificate_or_that_of_a_server(server: SessionServer, keys: Path) -> None:
    token = server.invite("a")
    first = control(Kind.HELLO, version=1, name="a", token=token)
    nobody = grpc.ssl_channel_credentials((keys / "ca.crt").read_bytes())
    received, code, _ = raw_stream(server.port, nobody, lambda: iter((first,)))
    assert (received, code) == ([], grpc.StatusCode.UNAVAILABLE)
    tls = ClientTLS.read(keys / "ca.crt", keys / "server.crt", keys / "server.key")
    received, code, _ = raw_stream(server.port, tls, lambda: iter((first,)))
    assert (received, code) == ([], grpc.StatusCode.UNAVAILABLE)
    serves_on(server, keys)


def test_a_server_under_another_name(server: SessionServer, keys: Path) -> None:
    """127.0.0.2 is the same machine, and not in the server's certificate."""
    with pytest.raises(SessionRefused):
        serve_session(
            f"127.0.0.2:{server.port}", client_tls(keys, "a"), "a", "token", {}, IMPATIENT
        )


def test_wrong_names_and_tokens(
    server: SessionServer, keys: Path, changes: list[tuple[str, str, str]]
) -> None:
    token = server.invite("a")
    other = "the certificate is not that of 'a'"
    assert connect(server, client_tls(keys, "b"), "a", token) == other
    assert "token is not valid" in connect(server, client_tls(keys, "b"), "b", token)
    assert "token is not valid" in connect(server, client_tls(keys, "a"), "a", "x" * 43)
    assert "token is not valid" in connect(server, client_tls(keys, "a"), "a", "\udc80")
    newer = server.invite("a")
    assert "token is not valid" in connect(server, client_tls(keys, "a"), "a", token)
    server.disconnect("nobody", "all changes have been told when this returns")
    assert {change[1] for change in changes} == {"refused"}
    assert [change[0] for change in changes] == ["b", "b", "a", "a", "a"]
    client = ClientThread(keys, server.port, "a", newer)
    assert server.wait("a", 20)
    server.disconnect("a", "bye")
    assert client.summary().closed == "bye"
    assert "token is not valid" in connect(server, client_tls(keys, "a"), "a", newer)


def test_a_second_connection_while_one_is_alive(server: SessionServer, keys: Path) -> None:
    token = server.invite("a")
    ClientThread(keys, server.port, "a", token)
    server.wait("a", 20)
    assert "token is not valid" in connect(server, client_tls(keys, "a"), "a", token)
    again = connect(server, client_tls(keys, "a"), "a", server.invite("a"))
    assert again == "this client is connected already"
    assert one(server, "a", b"the first") == b"the first"


def test_full(keys: Path) -> None:
    with serving(keys, QUICK.model_copy(update={"max_clients": 1})) as server:
        ClientThread(keys, server.port, "a", server.invite("a"))
        server.wait("a", 20)
        full = connect(server, client_tls(keys, "b"), "b", server.invite("b"))
        assert full == "1 clients are connected, which is the limit"


def test_odd_hellos(server: SessionServer, keys: Path) -> None:
    def say(**content: str | int) -> bytes:
        return control(Kind.HELLO, **content)

    token = server.invite("a")
    code, reason = hello(server, say(version=2, name="a", token=token), keys=keys)
    assert (code, reason) == (DENIED, "protocol version 2, this server speaks 1")
    for frame, expected in [
        (b"garbage" * 10, "unknown kind"),
        (b"", "a frame of 0 bytes"),
        (say(version=1, name="a"), "HELLO must have the fields"),
        (say(version=1, name=7, token=token), "HELLO must have the fields"),
        (next(encode(Kind.HELLO, 0, b"[" * 4000)), "not JSON"),
        (next(encode(Kind.REPLY, 1, bytes(10))), "REPLY where HELLO belongs"),
    ]:
        code, reason = hello(server, frame, keys=keys)
        assert code is BROKEN
        assert expected in reason
    code, reason = hello(server, bytes(5 * 1024**2), keys=keys)
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    serves_on(server, keys)


def test_no_hello_and_no_ready(keys: Path) -> None:
    with serving(keys, QUICK.model_copy(update={"hello_seconds": 0.3})) as server:
        assert hello(server, keys=keys) == (DENIED, "no hello within 0.3 s")
        token = server.invite("a")
        first = control(Kind.HELLO, version=1, name="a", token=token)
        assert hello(server, first, keys=keys) == (DENIED, "no hello within 0.3 s")
        client = ClientThread(keys, server.port, "a", token)  # the token was not used up
        assert server.wait("a", 20)
        server.close("done")
        client.summary()


def answering(server: SessionServer, keys: Path, reply: Callable[[int], Iterator[bytes]]) -> str:
    """Join as `a`, answer the first ask with any frames, and return what became of the ask."""
    token, incoming = server.invite("a"), queue.SimpleQueue[bytes]()
    options = [("grpc.max_receive_message_length", -1)]
    credentials = client_tls(keys, "a").credentials()

    def outgoing() -> Iterator[bytes]:
        yield control(Kind.HELLO, version=1, name="a", token=token)
        read_control(parse(incoming.get()), Kind.WELCOME, {"token": str})
        yield control(Kind.READY)
        yield from reply(parse(incoming.get()).sequence)
        threading.Event().wait(1)

    with grpc.secure_channel(f"127.0.0.1:{server.port}", credentials, options) as channel:
        call = channel.stream_stream("/trillium.Session/Serve")(outgoing())

        def read() -> None:
            with suppress(grpc.RpcError):
                for data in call:
                    incoming.put(data)

        reader = threading.Thread(target=read)
        reader.start()
        assert server.wait("a", 20)
        try:
            return lost(one(server, "a", deadline_seconds=20))
        finally:
            call.cancel()
            reader.join()


def _raw(kind: int, sequence: int, total: int, payload: bytes) -> bytes:
    return HEADER.pack(kind, sequence, total, 0) + payload


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (lambda n: iter((b"\x00" * 100,)), "unknown kind 0"),
        (lambda n: iter((_raw(Kind.REPLY, n + 1, 1, b"x"),)), "an answer to what was not asked"),
        (lambda n: iter((_raw(Kind.ASK, n, 1, b"x"),)), "ASK where an answer belongs"),
        (lambda n: iter((_raw(Kind.MORE, n, 1, b"x"),)), "not begun"),
        (lambda n: iter((_raw(Kind.REPLY, n, 2**60, b"x"),)), "at most 4294967296 are accepted"),
        (
            lambda n: iter((_raw(Kind.REPLY, n, 2, b"x"), _raw(Kind.MORE, n, 2, b"xy"))),
            "more than the 2 bytes",
        ),
        (lambda n: iter((_raw(Kind.REPLY, n, 2**31, b"x"),) * 2), "REPLY inside a message"),
    ],
)
def test_answers_that_break_the_protocol(
    server: SessionServer, keys: Path, reply: Callable[[int], Iterator[bytes]], reason: str
) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert reason in answering(server, keys, reply)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB
    assert server.clients == []
    serves_on(server, keys)


def test_an_answer_longer_than_the_run_can_give_rise_to_is_not_taken_in(keys: Path) -> None:
    with serving(keys) as server:
        a = ClientThread(keys, server.port, "a", server.invite("a"))
        assert server.wait(["a"], 10) == {"a"}
        assert one(server, "a", b"x" * 100, most_bytes=100) == b"x" * 100
        reply = one(server, "a", b"x" * 101, most_bytes=100)
        assert "REPLY of 101 bytes, at most 100 are accepted" in lost(reply)
        assert not a.summary().complete
