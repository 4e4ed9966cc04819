"""As many sessions as `max-clients` allows, each with a certificate of its own, and not one more.

The nodes are coroutines of one thread. With a thread each, as nodes have, a thousand of them in one
process hold each other up for minutes; the server has its own threads, as in a deployment.
"""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import grpc.aio
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from session_help import QUICK, serving

from trillium.deploy.certificates import Authority, Request, issue, new_key, read_authority
from trillium.engines import frames
from trillium.engines.frames import Kind
from trillium.engines.secure import METHOD, SERVICE, ClientTLS, client_options
from trillium.engines.session import SessionRefused, serve_session
from trillium.engines.stream import SessionServer

CONFIG = QUICK.model_copy(update={"connect_seconds": 600.0, "hello_seconds": 300.0})


def member(authority: Authority, name: str) -> ClientTLS:
    key = new_key()
    certificate = issue(authority, Request(name, (), key.public_key()))
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return ClientTLS(
        authority[0].public_bytes(Encoding.PEM), certificate.public_bytes(Encoding.PEM), secret
    )


async def node(port: int, tls: ClientTLS, name: str, token: str) -> str:
    """Answer each ask with itself, and return why the session has ended."""
    words = (f"127.0.0.1:{port}", tls.credentials(), client_options(CONFIG))
    async with grpc.aio.secure_channel(*words) as channel:
        call = channel.stream_stream(f"/{SERVICE}/{METHOD}")()
        hello = frames.control(Kind.HELLO, version=frames.PROTOCOL, name=name, token=token)
        await call.write(hello)
        assert frames.parse(await call.read()).kind is Kind.WELCOME
        await call.write(frames.control(Kind.READY))
        while (frame := frames.parse(await call.read())).kind is Kind.ASK:
            [reply] = frames.encode(Kind.REPLY, frame.sequence, bytes(frame.payload))
            await call.write(reply)
        assert frame.kind is Kind.BYE
        return bytes(frame.payload).decode()


async def nodes(server: SessionServer, authority: Authority, names: list[str]) -> list[str]:
    waiting = [
        node(server.port, member(authority, name), name, server.invite(name)) for name in names
    ]
    return await asyncio.gather(*waiting)


@pytest.mark.parametrize("number", [3, pytest.param(1000, marks=pytest.mark.drill)])
def test_all_are_let_in_and_answer_and_one_more_is_not(keys: Path, number: int) -> None:
    authority, ended = read_authority(keys), list[str]()
    names = [f"many-{index}" for index in range(number)]
    with serving(keys, CONFIG.model_copy(update={"max_clients": number})) as server:
        coming = threading.Thread(
            target=lambda: ended.extend(asyncio.run(nodes(server, authority, names))), daemon=True
        )
        coming.start()
        assert len(server.wait(names, 600.0)) == number
        asks = {name: name.encode() for name in names}
        assert dict(server.carry(asks, deadline_seconds=300.0)) == asks
        words = (f"127.0.0.1:{server.port}", member(authority, "more"), "more")
        with pytest.raises(SessionRefused, match=f"{number} clients are connected"):
            serve_session(*words, server.invite("more"), {}, CONFIG)
        assert dict(server.carry(asks, deadline_seconds=300.0)) == asks
        server.close("done")
        coming.join(60.0)
    assert ended == ["done"] * number
