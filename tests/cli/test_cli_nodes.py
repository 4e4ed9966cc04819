"""`trillium nodes`: what the board of a run wrote, as an operator reads it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli_help import Cli

pytest.importorskip("flwr", reason="Flower is not installed (extra: deploy)")

from trillium.engines.board import Board
from trillium.experiment.folder import RunFolder
from trillium.wire.ledger import Entry


def crossed(client: str, number: int, direction: str) -> Entry:
    return Entry(number, client, "train", direction, "train", 10, 10, {})  # type: ignore[arg-type]


def test_nodes_are_listed_with_state_last_sign_and_round(tmp_path: Path, cli: Cli) -> None:
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
    title, header, first, second = cli.done("nodes", tmp_path).splitlines()
    assert title == "one: round 2 of 5"
    assert header.split() == ["node", "state", "last", "seen", "round"]
    assert first.split()[:2] == ["a", "here"]
    assert first.split()[-1] == "2"
    assert second.split()[:2] == ["b", "away"]
    assert second.endswith("-      the link was lost")
    told = json.loads(cli.done("nodes", tmp_path, "--json"))
    assert [node["name"] for node in told["nodes"]] == ["a", "b"]
    folder.status("finished")
    assert "the run is over" in cli.done("nodes", tmp_path)


def test_without_a_run_it_says_so(tmp_path: Path, cli: Cli) -> None:
    assert "no run of a deployment is below it" in cli.refused("nodes", tmp_path)


@pytest.mark.parametrize("address", ["nohost", "127.0.0.1:0", "127.0.0.1:99999999"])
def test_what_is_watched_has_a_port(tmp_path: Path, address: str, cli: Cli) -> None:
    assert "it is not host:port" in cli.refused("monitor", tmp_path, "--watch", address)
