"""`/health` and Prometheus' `/metrics` of a run, on the server's own machine."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, make_server
from wsgiref.types import StartResponse, WSGIEnvironment

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from trillium.engines.board import Board
from trillium.errors import UserError

HOST: Final = "127.0.0.1"


class _Silent(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: a monitor asks every few seconds."""


class BoardCollector(Collector):
    """What Prometheus is told of a board."""

    def __init__(self, board: Board) -> None:
        self._board = board

    def collect(self) -> Iterator[Metric]:
        """Yield the figures as they are now."""
        board = self._board
        states = [seen.state for seen in board.seen().values()]
        yield GaugeMetricFamily("trillium_round", "Last round that was measured", board.round)
        yield GaugeMetricFamily("trillium_rounds", "Rounds of the run", board.rounds)
        nodes = GaugeMetricFamily("trillium_nodes", "Nodes that have been here", labels=["state"])
        for state in ("here", "away"):
            nodes.add_metric([state], states.count(state))
        yield nodes
        crossed = CounterMetricFamily(
            "trillium_bytes", "Bytes that crossed in training", labels=["direction"]
        )
        for direction in ("up", "down"):
            crossed.add_metric([direction], board.bytes[direction])
        yield crossed
        yield CounterMetricFamily("trillium_seconds", "Seconds that rounds took", board.seconds)
        missing = CounterMetricFamily(
            "trillium_missing", "Measured rounds that a node was missing from", labels=["node"]
        )
        for name, count in sorted(board.missing.items()):
            missing.add_metric([name], count)
        yield missing
        yield CounterMetricFamily(
            "trillium_failed_rounds", "Rounds that failed for want of replies", board.failed()
        )


def health(board: Board) -> dict[str, object]:
    """Return how a run is, in short."""
    states = {name: seen.state for name, seen in board.seen().items()}
    return {
        "run": board.run,
        "round": board.round,
        "rounds": board.rounds,
        "here": sorted(name for name, state in states.items() if state == "here"),
        "away": sorted(name for name, state in states.items() if state == "away"),
        "failed_rounds": board.failed(),
    }


def serve(board: Board, port: int) -> Callable[[], None]:
    """Answer on this machine alone; return what ends it.

    Raises:
        UserError: another program listens on the port.
    """
    registry = CollectorRegistry()
    registry.register(BoardCollector(board))
    metrics = make_wsgi_app(registry)

    def answer(environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] != "/health":
            found: Iterable[bytes] = metrics(environ, start)
            return found
        start("200 OK", [("Content-Type", "application/json")])
        return [json.dumps(health(board)).encode()]

    try:
        server = make_server(HOST, port, answer, handler_class=_Silent)
    except OSError as error:
        raise UserError(
            f"monitor-port={port}", f"it cannot be listened on ({error.strerror})", "Write another"
        ) from error
    threading.Thread(target=server.serve_forever, name="monitor", daemon=True).start()

    def close() -> None:
        server.shutdown()
        server.server_close()

    return close
