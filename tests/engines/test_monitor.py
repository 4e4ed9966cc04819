"""What a monitor is told of a run: figures of Prometheus, and how it is in short."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="Flower is not installed (extra: deploy)")

from prometheus_client.parser import text_string_to_metric_families

from trillium.deploy.processes import free_port
from trillium.engines.board import Board
from trillium.engines.monitor import HOST, serve
from trillium.errors import UserError
from trillium.wire.ledger import Entry


def get(port: int, path: str) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://{HOST}:{port}{path}", timeout=10) as answer:
        return str(answer.read().decode())


def test_figures_and_health_are_those_of_the_board(tmp_path: Path) -> None:
    failed: dict[int, int] = {}
    board, port = Board(tmp_path, 5, failed), free_port(HOST)
    close = serve(board, port)
    try:
        for name in ("a", "b"):
            board.change(name, "joined", "")
        board.watch(Entry(2, "a", "train", "down", "train", 30, 30, {}))
        board.watch(Entry(2, "a", "train", "up", "train", 12, 12, {}))
        board.change("b", "lost", "gone")
        board.observe({"round": 2, "seconds": 4.5, "missing": {"b": "gone"}})
        failed[2] = 3
        found = {
            (sample.name, *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(get(port, "/metrics"))
            for sample in family.samples
        }
        assert found == {
            ("trillium_round",): 2,
            ("trillium_rounds",): 5,
            ("trillium_nodes", "here"): 1,
            ("trillium_nodes", "away"): 1,
            ("trillium_bytes_total", "up"): 12,
            ("trillium_bytes_total", "down"): 30,
            ("trillium_seconds_total",): 4.5,
            ("trillium_missing_total", "b"): 1,
            ("trillium_failed_rounds_total",): 3,
        }
        assert json.loads(get(port, "/health")) == {
            "run": tmp_path.name,
            "round": 2,
            "rounds": 5,
            "here": ["a"],
            "away": ["b"],
            "failed_rounds": 3,
        }
        with pytest.raises(UserError, match="monitor-port"):
            serve(board, port)
    finally:
        close()
    with pytest.raises(urllib.error.URLError):
        get(port, "/health")


def test_it_listens_on_this_machine_alone(tmp_path: Path) -> None:
    port = free_port(HOST)
    close = serve(Board(tmp_path, 1), port)
    try:
        others = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), port)} - {HOST}
        for address in others:
            with pytest.raises(OSError, match=r"refused|unreachable"), socket.socket() as probe:
                probe.connect((address, port))
        assert HOST.startswith("127.")
    finally:
        close()
