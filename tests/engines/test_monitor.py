"""What a monitor is told of a deployment and of a node: figures of Prometheus, and health in short."""

from __future__ import annotations

import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr", reason="Flower is not installed (extra: deploy)")

from prometheus_client.parser import text_string_to_metric_families

from trillium.deploy.processes import free_port
from trillium.engines.board import Board
from trillium.engines.journal import Journal
from trillium.engines.monitor import HOST, Watched, listen
from trillium.errors import UserError
from trillium.experiment.folder import RunFolder
from trillium.wire.ledger import Entry


def get(port: int, path: str) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://{HOST}:{port}{path}", timeout=10) as answer:
        return str(answer.read().decode())


def health(port: int) -> dict[str, Any]:
    return dict(json.loads(get(port, "/health")))


def figures(port: int) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(get(port, "/metrics"))
        for sample in family.samples
        if not sample.name.endswith("_time_seconds")
    }


@contextmanager
def monitored(folder: Path, addresses: Sequence[str] = ()) -> Iterator[int]:
    port = free_port(HOST)
    with listen(Watched(folder, addresses), port) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield port
        server.shutdown()


def test_figures_and_health_are_those_of_the_run(tmp_path: Path) -> None:
    folder, failed = tmp_path / "server" / "runs" / "first", dict[int, int]()
    run = RunFolder(folder, "first")
    with monitored(tmp_path) as port:
        assert health(port) == {"up": {}}
        assert figures(port) == {}
        run.status("running")
        board = Board(folder, 5, failed)
        for name in ("a", "b"):
            board.change(name, "joined", "")
        board.watch(Entry(2, "a", "train", "down", "train", 30, 30, {}))
        board.watch(Entry(2, "a", "train", "up", "train", 12, 12, {}))
        failed[2] = 3
        board.change("b", "lost", "gone")
        board.observe({"round": 2, "seconds": 4.5, "missing": {"b": "gone"}})
        assert figures(port) == {
            ("trillium_running",): 1,
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
        run.status("finished")
        assert health(port) == {
            "up": {},
            "run": "first",
            "state": "finished",
            "round": 2,
            "rounds": 5,
            "here": ["a"],
            "away": ["b"],
            "failed_rounds": 3,
        }
        assert figures(port)["trillium_running",] == 0


def test_a_process_that_takes_no_connections_is_told(tmp_path: Path) -> None:
    with socket.create_server((HOST, 0)) as living:
        up, down = f"{HOST}:{living.getsockname()[1]}", f"{HOST}:{free_port(HOST)}"
        with monitored(tmp_path, [up]) as port:
            assert health(port) == {"up": {up: True}}
        with monitored(tmp_path, [up, down]) as port:
            assert figures(port) == {("trillium_up", up): 1, ("trillium_up", down): 0}
            with pytest.raises(urllib.error.HTTPError, match="503"):
                get(port, "/health")


def test_a_node_tells_when_it_has_last_answered(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "state")
    for number in (1, 2):
        journal.add({"run": "first", "round": number, "verb": "train", "refused": None}, b"12345")
    with monitored(tmp_path) as port:
        last = health(port)["last"]
        assert (last["run"], last["round"], last["refused"]) == ("first", 2, None)
        assert figures(port) == {("trillium_answers_total",): 2}


def test_it_listens_on_this_machine_alone(tmp_path: Path) -> None:
    with monitored(tmp_path) as port:
        others = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), port)} - {HOST}
        for address in others:
            with pytest.raises(OSError, match=r"refused|unreachable"), socket.socket() as probe:
                probe.connect((address, port))
        assert HOST.startswith("127.")
        with pytest.raises(UserError, match="listened on"):
            listen(Watched(tmp_path), port)
