"""`/health` and Prometheus' `/metrics` of a deployment or a node, from its files, on its own machine.

A process of its own: it answers between runs, too, and when all others are dead. It writes nothing.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIEnvironment

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from trillium.engines.journal import LOG
from trillium.errors import UserError
from trillium.files import NODES

HOST: Final = "127.0.0.1"
CONNECT_SECONDS: Final = 2.0
LAST_BYTES: Final = 65536  # of a node's log: far more than its last line


@dataclass(frozen=True)
class Watched:
    """What is looked at.

    Attributes:
        folder: of a deployment, or of a node.
        addresses: `host:port` of processes that must take connections.
    """

    folder: Path
    addresses: Sequence[str] = ()

    def up(self) -> dict[str, bool]:
        """Return which of the processes take connections."""
        return {address: _takes_connections(address) for address in self.addresses}

    def run(self) -> dict[str, Any]:
        """Return what the newest run has written of itself; nothing before the first one."""
        times = {path: path.stat().st_mtime for path in self.folder.rglob(NODES)}
        if not times:
            return {}
        path = max(times, key=lambda found: times[found])
        board: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        status = path.with_name("status.json")
        told = json.loads(status.read_text(encoding="utf-8")) if status.is_file() else {}
        return {**board, "state": told.get("state", ""), "written": times[path]}

    def answer(self) -> dict[str, Any]:
        """Return the last line of a node's log: what it was last asked, and what left."""
        path = next(iter(sorted(self.folder.rglob(LOG))), None)
        if path is None:
            return {}
        with path.open("rb") as file:
            file.seek(-min(path.stat().st_size, LAST_BYTES), 2)
            lines = file.read().splitlines()
        found: dict[str, Any] = json.loads(lines[-1]) if lines else {}
        return {**found, "written": path.stat().st_mtime} if found else {}

    def health(self) -> dict[str, Any]:
        """Return how it is, in short."""
        run, last = self.run(), self.answer()
        seen = {name: of["state"] for name, of in run.get("nodes", {}).items()}
        found: dict[str, Any] = {"up": self.up()}
        if run:
            words = ("run", "state", "round", "rounds", "failed_rounds")
            found |= {word: run[word] for word in words}
            for state in ("here", "away"):
                found[state] = sorted(name for name, own in seen.items() if own == state)
        if last:
            found["last"] = {word: last.get(word) for word in ("time", "run", "round", "refused")}
        return found


class Figures(Collector):
    """What Prometheus is told."""

    def __init__(self, watched: Watched) -> None:
        self._watched = watched

    def collect(self) -> Iterator[Metric]:
        """Yield the figures as they are now."""
        up = GaugeMetricFamily("trillium_up", "Whether it takes connections", labels=["address"])
        for address, is_up in self._watched.up().items():
            up.add_metric([address], is_up)
        yield up
        if run := self._watched.run():
            yield from _of_run(run)
        if last := self._watched.answer():
            yield GaugeMetricFamily(
                "trillium_answered_time_seconds", "When the node last answered", last["written"]
            )
            yield CounterMetricFamily("trillium_answers", "Lines of its log", last["number"])


def _of_run(run: dict[str, Any]) -> Iterator[Metric]:
    is_on = run["state"] == "running"
    yield GaugeMetricFamily("trillium_running", "Whether a run is under way", is_on)
    yield GaugeMetricFamily("trillium_written_time_seconds", "When it last wrote", run["written"])
    yield GaugeMetricFamily("trillium_round", "Last round that was measured", run["round"])
    yield GaugeMetricFamily("trillium_rounds", "Rounds of the run", run["rounds"])
    nodes = GaugeMetricFamily("trillium_nodes", "Nodes that have been here", labels=["state"])
    states = [seen["state"] for seen in run["nodes"].values()]
    for state in ("here", "away"):
        nodes.add_metric([state], states.count(state))
    yield nodes
    crossed = CounterMetricFamily(
        "trillium_bytes", "Bytes that crossed in training", labels=["direction"]
    )
    for direction, count in run["bytes"].items():
        crossed.add_metric([direction], count)
    yield crossed
    yield CounterMetricFamily("trillium_seconds", "Seconds that rounds took", run["seconds"])
    missing = CounterMetricFamily(
        "trillium_missing", "Measured rounds that a node was missing from", labels=["node"]
    )
    for name, count in run["missing"].items():
        missing.add_metric([name], count)
    yield missing
    yield CounterMetricFamily(
        "trillium_failed_rounds", "Rounds that failed for want of replies", run["failed_rounds"]
    )


class _Silent(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: a monitor asks every few seconds."""


def listen(watched: Watched, port: int) -> WSGIServer:
    """Return a server for this machine alone, whose `serve_forever` answers.

    `/health` has the status 503 if a process takes no connections.

    Raises:
        UserError: another program listens on the port.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Figures(watched))
    metrics = make_wsgi_app(registry)

    def answer(environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] != "/health":
            found: Iterable[bytes] = metrics(environ, start)
            return found
        health = watched.health()
        is_well = all(health["up"].values())
        start(
            "200 OK" if is_well else "503 Service Unavailable",
            [("Content-Type", "application/json")],
        )
        return [json.dumps(health).encode()]

    try:
        return make_server(HOST, port, answer, handler_class=_Silent)
    except OSError as error:
        raise UserError(
            f"--port {port}", f"it cannot be listened on ({error.strerror})", "Write another"
        ) from error


def _takes_connections(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS):
            return True
    except OSError:
        return False
