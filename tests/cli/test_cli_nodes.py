"""`trillium nodes`: what the board of a run wrote, as an operator reads it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_help import trillium

pytest.importorskip("flwr", reason="Flower is not installed (extra: deploy)")

from trillium.engines.board import Board
from trillium.experiment.folder import RunFolder
from trillium.wire.ledger import Entry


def crossed(client: str, number: int, direction: str) -> Entry:
    return Entry(number, client, "train", direction, "train", 10, 10, {})  # type: ignore[arg-type]


def test_nodes_are_listed_with_state_last_sign_and_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(tmp_path / "server" / "runs" / "one", "fedllm", deployed=True)
    board = Board(folder.path, 5)
    board.change("b", "joined", "from somewhere")
    board.change("a", "joined", "from somewhere")
    board.change("", "refused", "no certificate")
    board.watch(crossed("a", 2, "down"))
    board.watch(crossed("a", 2, "up"))
    board.change("b", "lost", "the link was lost")
    board.observe({"round": 2, "seconds": 1.5, "missing": {"b": "the link was lost"}})
    assert (board.bytes["up"], board.bytes["down"], board.missing["b"]) == (10, 10, 1)
    assert trillium(monkeypatch, "nodes", tmp_path) == 0
    title, header, first, second = capsys.readouterr().out.splitlines()
    assert title == "one: round 2 of 5"
    assert header.split() == ["node", "state", "last", "seen", "round"]
    assert first.split()[:2] == ["a", "here"]
    assert first.split()[-1] == "2"
    assert second.split()[:2] == ["b", "away"]
    assert second.endswith("-      the link was lost")
    assert trillium(monkeypatch, "nodes", tmp_path, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert [node["name"] for node in told["nodes"]] == ["a", "b"]
    folder.status("finished")
    assert trillium(monkeypatch, "nodes", tmp_path) == 0
    assert "the run is over" in capsys.readouterr().out


def test_without_a_run_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert trillium(monkeypatch, "nodes", tmp_path) == 2
    assert "no run of a deployment is below it" in capsys.readouterr().err


@pytest.mark.parametrize("address", ["nohost", "127.0.0.1:0", "127.0.0.1:99999999"])
def test_what_is_watched_has_a_port(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    address: str,
) -> None:
    assert trillium(monkeypatch, "monitor", tmp_path, "--watch", address) == 2
    assert "it is not host:port" in capsys.readouterr().err
