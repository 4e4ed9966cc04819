"""A deployment in this process, of real nodes, sessions and streams, and what it is held to.

Flower's mail alone is not there.
"""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest
from flwr.app import RecordDict

from trillium.config.experiment import ExperimentConfig
from trillium.config.texts import Texts
from trillium.data.deployed import write_rows
from trillium.data.federated import FederatedData
from trillium.data.load import load_data
from trillium.engines import distributed, node, patience
from trillium.engines.certified import Certified
from trillium.engines.distributed import SessionEngine
from trillium.engines.frames import StreamConfig
from trillium.engines.node import Node
from trillium.engines.node_settings import NodeConfig
from trillium.engines.opening import Opening
from trillium.engines.patience import Patience
from trillium.engines.roster import Mail, Online, text_of
from trillium.engines.secure import ClientTLS, ServerTLS
from trillium.engines.session import Handler, Summary, serve_session
from trillium.experiment.folder import RunFolder
from trillium.experiment.run import SERVER, Experiment, build_server, resident_model
from trillium.federation.parts import Lost
from trillium.federation.side import Metrics
from trillium.privacy.masks import Masks

HERE = "127.0.0.1:0"
QUICK = StreamConfig(reconnect_seconds=5.0)  # nobody waits long for a server that is gone
Fault = Callable[[bytes, Handler], bytes]


class Nodes:
    """Takes the place of Flower's mail: an invitation starts the node of a client in a thread.

    Args:
        keys: folder of the certificates.
        config, data: of the recipe; each node gets a file with its rows, and one to look at its model.
        state: where each node has a folder for them, and for what it holds.
        fault: answers what the engine asks a node, in its place; the second argument answers in truth.
            What ends the thread ends the node.
        spoil: answers what the framework asks a node.
    """

    def __init__(
        self,
        keys: Path,
        config: ExperimentConfig,
        data: FederatedData,
        state: Path,
        fault: Fault | None = None,
        spoil: Fault | None = None,
    ) -> None:
        self._fault, self._spoil = fault, spoil
        self._online = {n: Online(name, "t0") for n, name in enumerate(sorted(data.clients))}
        tables = {"test": data.test} if config.evaluation.where == "server" else {}
        for name, rows in data.clients.items():
            for file, own in {"train": rows, **tables}.items():
                path = state / name / f"{file}.jsonl"
                write_rows(path, own, data.labels, config.data.source)
        self._keys, self._state = keys, state
        self._ended: dict[str, Future[Summary]] = {}  # by the message
        self._threads = ThreadPoolExecutor(2 * len(self._online))
        self._turn = threading.Lock()  # what is random within an ask is so for the whole process
        self.port = 0

    def nodes(self) -> dict[int, Online]:
        return self._online

    def send(
        self, action: str, contents: Mapping[int, RecordDict], ttl: float | None
    ) -> dict[str, int]:
        assert action == "session"
        sent = {}
        for number, content in contents.items():
            opening = Opening.decode(text_of(content, "opening", "opening"))
            own = Node(self._settings(self._online[number].name), opening)
            if isinstance(own.client.masks, Masks):
                own.client.masks.vouching = self.certified(own.name, opening.run)
            handlers = {"message": self._one_by_one(own), "control": self._control(own)}
            token = text_of(content, "opening", "token")
            address, tls = f"127.0.0.1:{self.port}", self._tls(own.name)
            words = (address, tls, own.name, token, handlers, QUICK)
            message = f"message-{len(self._ended)}-{number}"
            self._ended[message] = self._threads.submit(serve_session, *words)
            sent[message] = number
        return sent

    def _settings(self, name: str) -> NodeConfig:
        own, keys = self._state / name, self._keys / "nodes" / name
        found = {"data": own / "train.jsonl", "state": own}
        found |= {"test": own / "test.jsonl"} if (own / "test.jsonl").is_file() else {}
        found |= {"certificate": keys / "client.crt", "key": keys / "client.key"}
        found["authority"] = self._keys / "ca.crt"
        return NodeConfig.read({"name": name, **{key: str(path) for key, path in found.items()}})

    def answers(self, waiting: Iterable[str]) -> Iterator[tuple[str, RecordDict | Lost]]:
        for message in list(waiting):
            if self._ended[message].done():
                yield message, Lost("its process has ended")

    def _control(self, node: Node) -> Handler:
        fault = self._fault
        return node.control if fault is None else lambda data: fault(data, node.control)

    def _one_by_one(self, node: Node) -> Handler:
        def handle(data: bytes) -> bytes:
            with self._turn:
                return node.handle(data) if self._spoil is None else self._spoil(data, node.handle)

        return handle

    def certified(self, name: str, run: str) -> Certified:
        folder = self._keys / "nodes" / name
        files = {"certificate": "client.crt", "key": "client.key"}
        paths = {key: folder / file for key, file in files.items()}
        return Certified.read(NodeConfig(authority=self._keys / "ca.crt", **paths), run)

    def _tls(self, name: str) -> ClientTLS:
        own = self._keys / "nodes" / name
        return ClientTLS.read(self._keys / "ca.crt", own / "client.crt", own / "client.key")

    def join(self) -> None:
        """Wait until all have been told that the run is over."""
        for ended in self._ended.values():
            ended.exception()
        self._threads.shutdown()


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def ledger(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return what crossed, by client and in order; clients answer in any order among themselves."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for entry in lines_of(folder / "wire.jsonl"):
        del entry["seconds"]
        found[entry.pop("client")].append(entry)
    return found


def metrics(folder: Path) -> list[dict[str, Any]]:
    lines = lines_of(folder / "metrics.jsonl")
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def assert_equal(folder: Path, local: Path) -> None:
    """Two finished run folders hold the same bytes, weights and figures.

    In one process, clients whose batches have the same shape share what is measured, whatever part of
    their texts is to be learnt: peaks are a little off.
    """
    crossed = ledger(local)
    for entry in (entry for entries in crossed.values() for entry in entries):
        if entry.get("peak_bytes"):
            entry["peak_bytes"] = pytest.approx(entry["peak_bytes"], rel=0.01)
    assert ledger(folder) == crossed
    assert metrics(folder) == metrics(local)
    trained = [path / "adapter" / "adapter_model.safetensors" for path in (folder, local)]
    assert len({path.read_bytes() if path.exists() else None for path in trained}) == 1
    assert json.loads((folder / "status.json").read_text())["state"] == "finished"


def run_in_threads(
    config: ExperimentConfig,
    keys: Path,
    folder: RunFolder,
    monkeypatch: pytest.MonkeyPatch,
    observe: Callable[[Metrics], None] | None = None,
    fault: Fault | None = None,
    spoil: Fault | None = None,
    through: Callable[[int], int] | None = None,
    repeats: int = 0,
    revoked: Path | None = None,
    seconds: tuple[float, float] = (20.0, 60.0),
) -> Experiment:
    """Run a federation over sessions with its clients, or go on with one.

    Args:
        through: lays a link to a port, and returns the port at which nodes reach it.
        seconds: to wait for nodes, and for an answer.
    """
    monkeypatch.setattr(distributed, "GOODBYE_SECONDS", 0.0)  # nobody answers the invitations
    for module in (distributed, patience):
        monkeypatch.setattr(module, "POLL_SECONDS", 0.01)
    data = load_data(config.data, config.task.data_form, config.seed, config.public_size)
    texts = Texts(config, data.labels)
    config, whole = texts.fit(data), data
    data = texts.counted(data)
    newest = folder.checkpoints.newest(SERVER)
    opening = Opening("run", config.tree(), list(data.labels), 0 if newest is None else newest[0])
    monkeypatch.setattr(node, "free_at_once", lambda: None)  # it would slow later tests down
    nodes = Nodes(keys, config, whole, folder.path / "nodes", fault, spoil)
    tls = ServerTLS.read(keys / "ca.crt", keys / "server.crt", keys / "server.key")
    waits = Patience(*seconds)
    engine = SessionEngine(
        cast(Mail, nodes), opening, waits, bind=HERE, address=HERE, tls=tls, revoked=revoked
    )
    port = engine._sessions.port
    nodes.port = port if through is None else through(port)
    finished = False
    try:
        engine.gather(len(data.clients))
        model = resident_model(config.of(None), data.labels)
        built = build_server(config, model, data, engine, folder)
        built.repeats = repeats
        built.run(observe)
        finished = True
    finally:
        engine.close(finished=finished)
    nodes.join()
    return built
