"""Ten clients on one shared model object = each client alone, in a process of its own."""

from __future__ import annotations

import multiprocessing
from collections import defaultdict
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from tiny import Recorder, digest, federation, frozen_digest, run_rounds, tensors_digest
from trillium.experiment.run import Experiment
from trillium.federation.client import Client, client_verb, verbs_of
from trillium.federation.fleet import RoundFailed
from trillium.frameworks.fedllm.protocol import FedLLM
from trillium.wire.message import Message, decode

NUM_CLIENTS = 10
# Dropout is on, so that random numbers, too, would show a leak.
COMMON = (f"data.num_clients={NUM_CLIENTS}", "data.public_size=6", "model.dropout=0.2",
          "adapter.dropout=0.1", "training.batch_size=2")  # fmt: skip
RUNS = {
    "fedllm": ("framework=fedllm",),
    "fedllm, full": ("framework=fedllm", "adapter=full"),
    "fedllm, folded": ("framework=fedllm", "framework.aggregator=fedex", "model.dtype=float32"),
    "fedllm, local": ("framework=fedllm", "framework.local=[lora_B, head]"),
    "fedllm, coded": ("framework=fedllm", "framework.aggregator=svd", "framework.download=change",
                      "wire.up=[sign]", "wire.down=[int4]", "model.dtype=float32",
                      "tiers={small: {clients: [client-7], rank: 1, layers: [1, 2]}}"),
    "kd": ("framework=kd",),
    "kd, cached": ("framework=kd", "framework.cache_rounds=2", "framework.public_per_round=5",
                   "framework.ensemble=class_counts",
                   "wire.up=[{name: top_classes, k: 2}]"),
    "coalesced": ("framework=split",),
    "in turns": ("framework=split", "framework.mode=splitfed_v2", "framework.shape=u"),
    "cached": ("framework=split", "framework.train=server", "framework.cache=true",
               "model.dropout=0", "adapter.dropout=0"),
    "copies": ("framework=split", "framework.mode=splitfed_v1", "framework.tail=2",
               "framework.shape=u"),
}  # fmt: skip
ALONE = "client-7"  # a process takes seconds to start; it serves all runs, one after the other
EVERYONE = ("fedllm",)  # of the other runs, every fourth client is enough
Asks = list[bytes]


def build(hub: Path, run: str) -> Experiment:
    return federation(hub, *COMMON, *RUNS[run])


class Shared:
    """A run of all clients on one model: what each was asked, and a hash of what it answered."""

    def __init__(self, fed: Experiment) -> None:
        frozen, initial = frozen_digest(fed), tensors_digest(fed.model.initial)
        log = Recorder(fed)
        run_rounds(fed, 2)
        fed.model.mount(fed.model.state())  # what a client folded is mounted, never written
        self.kept_base = frozen == frozen_digest(fed)
        self.kept_initial = initial == tensors_digest(fed.model.initial)
        self.asks: dict[str, Asks] = defaultdict(list)
        self.answers: dict[str, list[str]] = defaultdict(list)
        for client, request, reply in log.log:
            assert decode(reply).verb != "error", decode(reply).meta
            self.asks[client].append(request)
            self.answers[client].append(digest(reply))


def replay(client: Client, asks: Asks) -> list[str]:
    return [digest(client.handle(ask)) for ask in asks]


def alone(hub: Path, client: str, asks: dict[str, Asks]) -> dict[str, list[str]]:
    """Serve one client's asks of every run, with nobody else in the process."""
    torch.set_num_threads(1)
    found = {}
    for run, own in asks.items():
        fed = build(hub, run)
        (me,) = [c for c in fed.clients if c.name == client]
        fed.clients.clear()
        found[run] = replay(me, own)
    return found


@pytest.fixture(scope="module")
def shared(hub: Path) -> dict[str, Shared]:
    return {run: Shared(build(hub, run)) for run in RUNS}


@pytest.mark.parametrize("run", RUNS)
def test_the_resident_model_is_never_written(shared: dict[str, Shared], run: str) -> None:
    assert shared[run].kept_base
    assert shared[run].kept_initial
    assert len(shared[run].answers) == NUM_CLIENTS


@pytest.mark.parametrize("run", RUNS)
def test_each_client_answers_as_on_a_model_of_its_own(
    hub: Path, shared: dict[str, Shared], run: str
) -> None:
    found = shared[run]
    for index, (name, asks) in enumerate(sorted(found.asks.items())):
        if run in EVERYONE or index % 4 == 0:
            me = build(hub, run).clients[index]
            assert me.name == name
            assert replay(me, asks) == found.answers[name]


def test_each_client_answers_as_in_a_process_of_its_own(
    hub: Path, shared: dict[str, Shared]
) -> None:
    context = multiprocessing.get_context("spawn")
    asks = {run: found.asks[ALONE] for run, found in shared.items()}
    with context.Pool(1) as process:
        answers = process.apply(alone, (hub, ALONE, asks))
    assert answers == {run: found.answers[ALONE] for run, found in shared.items()}


class LeakyBase(FedLLM):
    """Writes a trace of each client into the resident model."""

    @client_verb
    def train(self, client: Client, message: Message) -> Message:
        with torch.no_grad():
            frozen = [p for p in client.model.module.parameters() if not p.requires_grad]
            frozen[0].mul_(1 + 1e-6)
        return super().train(client, message)


class LeakyInitial(FedLLM):
    """Trains in the values that every client starts from."""

    @client_verb
    def train(self, client: Client, message: Message) -> Message:
        next(iter(client.model.initial.values())).add_(1e-6)
        return super().train(client, message)


class LeakyRandom(FedLLM):
    """Draws random numbers from a stream that all clients share."""

    shared: ClassVar[torch.Generator] = torch.Generator().manual_seed(0)

    @client_verb
    def train(self, client: Client, message: Message) -> Message:
        torch.manual_seed(int(torch.randint(1000, (), generator=type(self).shared)))
        return super().train(client, message)


@pytest.mark.parametrize("leak", [LeakyBase, LeakyInitial, LeakyRandom])
def test_a_leak_is_told(hub: Path, leak: type[FedLLM]) -> None:
    fed = build(hub, "fedllm")
    for client in fed.clients:
        client.verbs = verbs_of(leak())
    if leak is LeakyInitial:  # which the next client notices itself
        with pytest.raises(RoundFailed, match="start values"):
            Shared(fed)
        return
    found = Shared(fed)
    assert found.kept_base == (leak is not LeakyBase)
    assert found.kept_initial
    own = build(hub, "fedllm")
    me = own.clients[7]
    me.verbs = verbs_of(leak())
    LeakyRandom.shared.manual_seed(0)
    assert replay(me, found.asks[me.name]) != found.answers[me.name]
