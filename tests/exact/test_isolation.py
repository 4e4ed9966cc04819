"""Six clients on one shared model object = each client alone, in a process of its own."""

from __future__ import annotations

import multiprocessing
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from tiny import Recorder, digest, federation, frozen_digest, run_rounds, tensors_digest
from trillium.experiment.run import Experiment
from trillium.federation.client import Client, client_verb, verbs_of
from trillium.federation.failed import RoundFailed
from trillium.frameworks.fedllm.protocol import FedLLM
from trillium.wire.message import Message, decode
from variants import VARIANTS, Variant, cases

pytestmark = pytest.mark.usefixtures("uncounted")

NUM_CLIENTS = 6
COMMON = (f"data.num_clients={NUM_CLIENTS}", "data.public_size=8", "training.batch_size=3")
FAST = ("fedllm", "fedllm full", "fedllm fedex", "fedllm local", "fedllm everything coded", "kd",
        "kd cached, confident", "split", "split v2, u", "split cache", "split v1, u")  # fmt: skip
ALONE = "client-1"  # a process takes seconds to start; it serves all runs, one after the other
Asks = list[bytes]
each = pytest.mark.parametrize("variant", cases(FAST, lambda v: v.asks_all and v.repeats, every=6))


def build(hub: Path, variant: Variant) -> Experiment:
    """Dropout is on where it may be, so that random numbers, too, would show a leak."""
    words = (*COMMON, *variant.dropout, *variant.words)
    return federation(hub, *words, model=variant.model, task=variant.task)


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
        fed = build(hub, VARIANTS[run])
        (me,) = [c for c in fed.clients if c.name == client]
        fed.clients.clear()
        found[run] = replay(me, own)
    return found


@pytest.fixture(scope="module")
def shared(hub: Path) -> Callable[[Variant], Shared]:
    """Runs of all clients, each made once."""
    return cache(lambda variant: Shared(build(hub, variant)))


@each
def test_the_resident_model_is_never_written(
    shared: Callable[[Variant], Shared], variant: Variant
) -> None:
    found = shared(variant)
    assert found.kept_base
    assert found.kept_initial
    assert len(found.answers) == NUM_CLIENTS


@each
def test_each_client_answers_as_on_a_model_of_its_own(
    hub: Path, shared: Callable[[Variant], Shared], variant: Variant
) -> None:
    found = shared(variant)
    for index, (name, asks) in enumerate(sorted(found.asks.items())):
        if variant == VARIANTS["fedllm"] or index % 3 == 0:  # for most runs some are enough
            me = build(hub, variant).clients[index]
            assert me.name == name
            assert replay(me, asks) == found.answers[name]


@pytest.mark.slow
def test_each_client_answers_as_in_a_process_of_its_own(
    hub: Path, shared: Callable[[Variant], Shared]
) -> None:
    context = multiprocessing.get_context("spawn")
    runs = {name: shared(VARIANTS[name]) for name in FAST}
    asks = {name: found.asks[ALONE] for name, found in runs.items()}
    with context.Pool(1) as process:
        answers = process.apply(alone, (hub, ALONE, asks))
    assert answers == {name: found.answers[ALONE] for name, found in runs.items()}


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
    fed = build(hub, VARIANTS["fedllm"])
    for client in fed.clients:
        client.verbs = verbs_of(leak())
    if leak is LeakyInitial:  # which the next client notices itself
        with pytest.raises(RoundFailed, match="start values"):
            Shared(fed)
        return
    found = Shared(fed)
    assert found.kept_base == (leak is not LeakyBase)
    assert found.kept_initial
    own = build(hub, VARIANTS["fedllm"])
    me = own.clients[3]
    me.verbs = verbs_of(leak())
    LeakyRandom.shared.manual_seed(0)
    assert replay(me, found.asks[me.name]) != found.answers[me.name]
