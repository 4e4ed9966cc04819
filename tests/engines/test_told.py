"""What a node tells the server when something goes wrong: codes, and nothing of the node's own."""

from __future__ import annotations

import gzip
import json
import os
import pickle
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

pytest.importorskip("flwr", reason="Flower is not installed (extra: deploy)")

from flwr.app import Context, RecordDict
from flwr.app import Message as FlowerMessage
from session_help import ClientThread, lost, one, serving

from tiny import experiment_config
from trillium.engines import flower, frames
from trillium.engines.flower import session
from trillium.engines.node import Node
from trillium.engines.node_settings import NodeConfig
from trillium.engines.opening import Opening
from trillium.engines.roster import opening_record, outcome
from trillium.engines.secure import ClientTLS
from trillium.engines.session import SessionRefused
from trillium.errors import SAID, PeerError, UserError, doing, shareable
from trillium.federation.checkpoint import Checkpoints
from trillium.federation.dispatch import ERROR_VERB
from trillium.wire.message import Message, decode

SECRET = "Lovelace"
LABELS = ["class 0", "class 1", "class 2"]
GOOD = f"text,label\nw1 {SECRET},class 0\nw2 w3,class 1\n"
MARK = SECRET.encode()
# What is in the file of a node, and the code that is told of it.
FILES: dict[str, tuple[str, str | bytes | None, str]] = {
    "no file": ("csv", None, "no_file"),
    "no suffix": (SECRET, GOOD, "rows"),
    "no rows": ("csv", "text,label\n", "no_rows"),
    "no header": ("csv", f"{SECRET},class 0\nw1 {SECRET},class 1\n", "no_column"),
    "no label": ("csv", f"text,{SECRET}\nw1,class 0\n", "no_column"),
    "two labels": ("csv", f"text,label,label,{SECRET}\nw1,{SECRET},class 0,x\n", "rows"),
    "wrong label": ("csv", f"text,label\nw1,{SECRET}\nw2,class 0\n", "unknown_class"),
    "no value": ("csv", f"text,label\n{SECRET},\n", "no_value"),
    "ragged": ("csv", f"text,label\n{SECRET},class 0,{SECRET}\n", "rows"),
    "quotes": ("csv", f'text,label\n"{SECRET}" {SECRET}"",class 0\n', "rows"),
    "not UTF-8": ("csv", f"text,label\n{SECRET} \xe9\xe8,class 0\n".encode("latin-1"), "rows"),
    "a spreadsheet": ("csv", b"PK\x03\x04" + MARK, "rows"),
    "broken gzip": ("csv.gz", gzip.compress(MARK * 99)[:-9] + MARK, "rows"),
    "no JSON": ("jsonl", f'{{"text": "{SECRET}", {SECRET}}}\n', "rows"),
    "no objects": ("jsonl", f'["{SECRET}"]\n', "rows"),
    "a number": ("jsonl", json.dumps({"text": [SECRET], "label": "class 0"}), "wrong_value"),
    "half a letter": ("jsonl", f'{{"text": "{SECRET} \\ud800", "label": "class 0"}}', "wrong_value"),
    "no Parquet": ("parquet", MARK * 9, "rows"),
    "no saved table": ("folder", None, "rows"),
}  # fmt: skip


def told(hub: Path, **own: str) -> str:
    """Let a node be invited, and return all that its answer says; nothing else of it crosses."""
    config = experiment_config(hub, "training.max_length=16")
    opening = Opening("run", config.tree(), LABELS, 0)
    record = opening_record(opening, address="127.0.0.1:1", token="t")
    asked, context = SimpleNamespace(content=record), SimpleNamespace(node_config=own)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flower, "log_to_screen", lambda *words: None)
        patch.setattr(flower, "Message", lambda content, reply_to: content)
        content = cast(RecordDict, session(cast(FlowerMessage, asked), cast(Context, context)))
    assert SECRET not in repr(content)
    return outcome(content)


@pytest.mark.parametrize("what", FILES)
def test_nothing_of_a_file_is_told(what: str, hub: Path, tmp_path: Path) -> None:
    suffix, content, code = FILES[what]
    path = tmp_path / SECRET / f"{SECRET}.{suffix}"
    path.parent.mkdir()
    if suffix == "folder":
        (path / SECRET).mkdir(parents=True)
    elif content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    said = told(hub, name=SECRET, data=str(path))
    assert f"({code})" in said
    assert SAID[cast(Any, code)] in said


def test_nothing_of_other_settings_is_told(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tmp_path / f"{SECRET}.csv"
    rows.write_text(GOOD)
    own = {"name": SECRET, "data": str(rows)}
    assert "(settings)" in told(hub, **own, other=SECRET)
    assert "(settings)" in told(hub, name=SECRET)
    assert "(no_file)" in told(hub, **own, test=f"{SECRET}/no.csv")
    assert "(model)" in told(hub, **own, model=str(tmp_path / SECRET))
    keys = {"certificate": f"{SECRET}/a.crt", "key": f"{SECRET}/a.key", "authority": SECRET}
    assert "(keys)" in told(hub, **own, **keys)

    def refused(*_: object) -> Any:
        raise SessionRefused(f"no session with {SECRET}")

    with monkeypatch.context() as patch:
        patch.setattr(flower, "serve_session", refused)
        patch.setattr(ClientTLS, "read", lambda *_: None)
        assert SAID["session"] in told(hub, **own)
    monkeypatch.setattr(flower, "Node", broken)
    assert "RuntimeError" in told(hub, **own)


def broken(*_: object) -> Any:
    raise RuntimeError(SECRET)


def classes_of(base: type[BaseException]) -> list[type[BaseException]]:
    return [base, *(found for each in base.__subclasses__() for found in classes_of(each))]


def errors() -> list[Exception]:
    """Return one error of every class that is loaded, a secret in each of its values."""
    found: list[Exception] = [UserError(SECRET, SECRET, SECRET, code) for code in (None, *SAID)]
    found += [OSError(number, SECRET, f"/{SECRET}") for number in (2, 13, 28)]
    for kind in classes_of(Exception):
        if issubclass(kind, (PeerError, UserError)) or kind.__module__.startswith("_pytest"):
            continue
        for arguments in ((SECRET,), (SECRET, SECRET), (SECRET, SECRET, SECRET), ()):
            try:
                made = kind(*arguments)
            except Exception:
                continue
            if not arguments and hasattr(made, "__dict__"):
                made.__dict__["why"] = SECRET
            found.append(cast(Exception, made))
            break
    assert len(found) > 200
    return found


def test_no_error_tells_more_than_its_code() -> None:
    for error in errors():
        with suppress(AttributeError, TypeError):  # a frozen one
            error.__cause__ = ValueError(SECRET)
        assert SECRET not in shareable(error), type(error)
        with suppress(Exception), doing("rows"):
            raise error
        assert SECRET not in shareable(error), type(error)
    assert shareable(OSError(28, SECRET, SECRET)) == f"{os.strerror(28)}; its own log says more"
    error = pickle.loads(pickle.dumps(UserError("a", "b", "c", "no_rows")))
    assert "(no_rows)" in shareable(error)


def failing(hub: Path, tmp_path: Path) -> tuple[Node, list[Exception]]:
    """Return a node whose verb `train` raises what stands in a list, last first."""
    rows = tmp_path / f"{SECRET}.csv"
    rows.write_text(GOOD)
    opening = Opening("run", experiment_config(hub, "training.max_length=16").tree(), LABELS, 0)
    own = {"name": "a", "data": str(rows), "state": str(tmp_path / SECRET)}
    node = Node(NodeConfig.read(own), opening)
    waiting: list[Exception] = []

    def fail(*_: object) -> Any:
        raise waiting.pop()

    node.client.verbs = {"train": fail}
    return node, waiting


def test_nothing_that_the_server_receives_holds_a_secret(
    keys: Path, hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    received: list[bytes] = []
    parse = frames.parse

    def noted(data: bytes) -> frames.Frame:
        received.append(bytes(data))
        return parse(data)

    monkeypatch.setattr(frames, "parse", noted)
    node, waiting = failing(hub, tmp_path)
    node.settle(0)
    ask = node.client.wire.pack(Message("train", meta={"round": 1}), "down").data
    kinds = [ValueError(SECRET), *errors()[::25], UserError(SECRET, SECRET, SECRET)]

    def fail(data: bytes) -> bytes:
        raise waiting.pop()

    handlers = {"message": node.handle, "control": node.control, "other": fail}
    with serving(keys) as server:
        client = ClientThread(keys, server.port, "a", server.invite("a"), handlers)
        assert server.wait(["a"], 10) == {"a"}
        for error in kinds:
            waiting.append(error)
            reply = one(server, "a", ask)
            assert isinstance(reply, bytes)
            assert decode(reply).verb == ERROR_VERB
            waiting.append(error)
            assert "other failed: " in lost(one(server, "a", channel="other"))
        assert SECRET in caplog.text  # the node's own log has all of it
        # A state that cannot be written, or read: its folder is a file, its file is no state.
        (tmp_path / SECRET / "runs").write_text(SECRET)
        save = json.dumps(["save", 1]).encode()
        assert SAID["state"] in lost(one(server, "a", save, channel="control"))
        (tmp_path / SECRET / "runs").unlink()
        (tmp_path / SECRET / "runs" / "run").mkdir(parents=True)
        (tmp_path / SECRET / "runs" / "run" / "a@1.pt").write_text(SECRET)
        assert node._folder is not None
        node._checkpoints = Checkpoints(node._folder)
        restore = json.dumps(["restore", 1]).encode()
        assert "(state)" in lost(one(server, "a", restore, channel="control"))
        assert "nothing that a node" in lost(one(server, "a", b'["x", 1]', channel="control"))
        server.close("done")
        client.summary()
    assert len(received) > 2 * len(kinds)
    assert not [data for data in received if MARK in data]
