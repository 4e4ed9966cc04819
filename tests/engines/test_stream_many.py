"""As many sessions as `max-clients` allows, each with a certificate of its own, and not one more."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from session_help import ECHO, QUICK, serving

from trillium.deploy.certificates import Authority, Request, issue, new_key, read_authority
from trillium.engines.secure import ClientTLS
from trillium.engines.session import SessionRefused, Summary, serve_session

CONFIG = QUICK.model_copy(update={"connect_seconds": 600.0, "hello_seconds": 300.0})


def member(authority: Authority, name: str) -> ClientTLS:
    key = new_key()
    certificate = issue(authority, Request(name, (), key.public_key()))
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return ClientTLS(
        authority[0].public_bytes(Encoding.PEM), certificate.public_bytes(Encoding.PEM), secret
    )


@pytest.mark.parametrize("number", [3, pytest.param(1000, marks=pytest.mark.drill)])
def test_all_are_let_in_and_answer_and_one_more_is_not(keys: Path, number: int) -> None:
    authority, ended = read_authority(keys), list[Summary]()
    names = [f"many-{index}" for index in range(number)]
    with serving(keys, CONFIG.model_copy(update={"max_clients": number})) as server:

        def serve(name: str) -> None:
            words = (f"127.0.0.1:{server.port}", member(authority, name), name)
            ended.append(serve_session(*words, server.invite(name), ECHO, CONFIG))

        threads = [threading.Thread(target=serve, args=(name,), daemon=True) for name in names]
        for thread in threads:
            thread.start()
        assert len(server.wait(names, 600.0)) == number
        asks = {name: name.encode() for name in names}
        assert dict(server.carry(asks, deadline_seconds=300.0)) == asks
        words = (f"127.0.0.1:{server.port}", member(authority, "more"), "more")
        with pytest.raises(SessionRefused, match=f"{number} clients are connected"):
            serve_session(*words, server.invite("more"), ECHO, CONFIG)
        assert dict(server.carry(asks, deadline_seconds=300.0)) == asks
        server.close("done")
        for thread in threads:
            thread.join(60.0)
    assert len(ended) == number
    assert all(summary.complete for summary in ended)
