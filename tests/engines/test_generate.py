"""Text across real sessions is the text of one process, and weighs the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr", reason="Flower is not installed (extra: deploy)")

from session_help import ClientThread, serving

from tiny import federation, perturb
from trillium.engines.stream import SessionServer
from trillium.experiment.run import Experiment
from trillium.federation.engine import Gathered
from trillium.federation.parts import Lost
from trillium.frameworks.split.generate import give_prompts, texts_of, write_texts
from trillium.tasks.writing import Writing
from trillium.wire.ledger import Entry

PROMPTS = {"client-0": [[9, 30, 17], [5, 6, 7, 8]], "client-1": [[40, 4, 22, 23, 8, 19]]}
NODES = {"client-0": "a", "client-1": "b"}  # by client, whose certificate it has


class OverStream:
    """An engine of sessions with clients that stay."""

    def __init__(self, sessions: SessionServer) -> None:
        self._sessions = sessions

    @property
    def clients(self) -> list[str]:
        return sorted(PROMPTS)

    def carry(self, requests: Mapping[str, bytes]) -> Iterator[tuple[str, bytes | Lost]]:
        clients = {node: client for client, node in NODES.items()}
        sent = {NODES[client]: data for client, data in requests.items()}
        for node, reply in self._sessions.carry(sent):
            yield clients[node], reply

    def gather(self, need: int) -> Gathered:
        return Gathered(PROMPTS.keys())

    def save(self, number: int) -> None:
        """Nothing is kept."""

    def restore(self, number: int, held: Mapping[str, int]) -> None:
        """Nothing was kept."""


def side(hub: Path, *words: str) -> Experiment:
    own = ("framework=split", "data.num_clients=2", *words)
    return perturb(federation(hub, *own, task="causal_lm"))


def write(fed: Experiment) -> tuple[dict[str, list[list[int]]], list[tuple[Any, ...]]]:
    framework: Any = fed.config.framework
    known = write_texts(framework, fed.server, fed.fleet, list(PROMPTS), Writing(6))
    return known, sorted(map(crossed, fed.fleet.ledger.entries))


def crossed(entry: Entry) -> tuple[Any, ...]:
    return entry.client, entry.verb, entry.direction, entry.bytes, sorted(entry.kinds.items())


@pytest.mark.parametrize("words", [(), ("framework.shape=u", "framework.tail=2")])
def test_distributed_is_local(hub: Path, keys: Path, words: tuple[str, ...]) -> None:
    here = side(hub, *words)
    for client in here.clients:
        give_prompts(client, PROMPTS[client.name])
    expected = write(here)
    # Each client is an experiment of its own, with a model that nobody else mounts anything into.
    there = {name: side(hub, *words).clients[at] for at, name in enumerate(sorted(PROMPTS))}
    server = side(hub, *words)
    with serving(keys) as sessions:
        for name, client in there.items():
            give_prompts(client, PROMPTS[name])
            handlers = {"message": client.handle}
            node = NODES[name]
            ClientThread(keys, sessions.port, node, sessions.invite(node), handlers)
        assert sessions.wait(list(NODES.values()), 10) == {*NODES.values()}
        server.fleet.engine = OverStream(sessions)
        assert write(server) == expected
    assert [texts_of(client) for client in there.values()] == [
        texts_of(client) for client in here.clients
    ]
    assert all(len(text) > 1 for client in here.clients for text in texts_of(client))
