"""A key that is revoked: its session ends at once, its update counts for nothing, and it stays out."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="Flower is not installed (extra: deploy)")

from cryptography.hazmat.primitives.serialization import Encoding
from session_help import ClientThread, client_tls, lost, one, serving

from deployed import metrics, run_in_threads
from tiny import experiment_config
from trillium.deploy.certificates import issue, read_authority, read_request
from trillium.deploy.keys import ask_for_node, revoke
from trillium.engines import revoked as revoked_module
from trillium.engines.secure import ServerTLS
from trillium.engines.session import Handler
from trillium.experiment.folder import RunFolder
from trillium.wire.message import decode

ROUND = 2


@pytest.fixture
def own(keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keys of this test alone, whose list is looked at often."""
    monkeypatch.setattr(revoked_module, "WATCH_SECONDS", 0.02)
    return Path(shutil.copytree(keys, tmp_path / "keys"))


def test_its_session_ends_at_once_and_it_is_not_let_in_again(own: Path) -> None:
    with serving(own, revoked=own / "revoked.txt") as server:
        client = ClientThread(own, server.port, "a", server.invite("a"))
        other = ClientThread(own, server.port, "b", server.invite("b"))
        assert server.wait(["a", "b"], 10.0) == {"a", "b"}
        revoke(own, "a")
        assert client.refusal() == "its key was revoked"
        assert lost(one(server, "a")) == "not connected: its key was revoked"
        assert server.is_revoked("a")
        again = ClientThread(own, server.port, "a", server.invite("a"))
        assert again.refusal() == "its key was revoked"
        assert one(server, "b") == b"ask"
        assert not server.is_revoked("b")
        server.disconnect("b", "done")
        assert other.summary().complete


def name_of(handler: Handler) -> str:
    return str(handler.__self__.name)  # type: ignore[attr-defined]


def test_what_it_sent_in_the_round_is_dropped(
    hub: Path, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uncounted: None
) -> None:
    """The weights are those of a run in which it did not answer from this round on."""
    config = experiment_config(hub, "fleet.min_replies=2", "rounds=3", "training.local_steps=1")
    answered: list[str] = []

    def spoil(data: bytes, handler: Handler) -> bytes:
        reply = handler(data)
        if decode(data).meta["round"] == ROUND:
            answered.append(name_of(handler))
            if len(answered) == 3:  # the first is found out when all others have answered, too
                revoke(own, answered[0])
                time.sleep(0.5)
        return reply

    folder = RunFolder(tmp_path / "revoked", "revoked")
    listed = own / "revoked.txt"
    run_in_threads(config, own, folder, monkeypatch, spoil=spoil, repeats=1, revoked=listed)
    assert len(answered) == 5  # two of them again
    lines = {line["round"]: line["missing"] for line in metrics(folder.path)}
    assert lines[1] == {}
    assert [*lines[ROUND]] == [*lines[3]] == [answered[0]]
    status = json.loads((folder.path / "status.json").read_text())
    assert status["failed_rounds"] == {str(ROUND): 1}

    def silent(data: bytes, handler: Handler) -> bytes:
        if decode(data).meta["round"] >= ROUND and name_of(handler) == answered[0]:
            raise OSError("gone")
        return handler(data)

    other = RunFolder(tmp_path / "silent", "silent")
    run_in_threads(config, own, other, monkeypatch, spoil=silent)
    trained = [f.path / "adapter" / "adapter_model.safetensors" for f in (folder, other)]
    assert trained[0].read_bytes() == trained[1].read_bytes()


def test_a_certificate_that_ends_soon_is_said_in_the_log(
    own: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    *_, request = ask_for_node(tmp_path / "node", "a")
    authority = read_authority(own)
    for days, said in ((31, False), (29, True)):
        found = issue(authority, read_request(request), days)
        path = own / "nodes" / "a" / "client.crt"
        path.write_bytes(found.public_bytes(Encoding.PEM))
        shutil.copy(tmp_path / "node" / "client.key", path.with_suffix(".key"))
        caplog.clear()
        client_tls.cache_clear()
        with serving(own) as server:
            ClientThread(own, server.port, "a", server.invite("a"))
            assert server.wait(["a"], 10.0) == {"a"}
        assert ("the certificate of a ends in 29 days" in caplog.text) == said
    ServerTLS.read(own / "ca.crt", own / "server.crt", own / "server.key")
