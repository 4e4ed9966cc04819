"""What clients say of public examples: how they are asked, and how their answers are checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch

from trillium.federation.fleet import Fleet
from trillium.federation.server import Server
from trillium.federation.side import Metrics
from trillium.frameworks import mean_metrics
from trillium.frameworks.kd.dialect import spoken
from trillium.frameworks.kd.dialects import opinion_of
from trillium.frameworks.kd.ensembles import Ensemble
from trillium.frameworks.kd.hidden import PUBLIC, read_hidden
from trillium.frameworks.kd.hiddens.probe import Probe
from trillium.frameworks.kd.opinion import Opinion
from trillium.frameworks.kd.public import choice, examples_at, read_mask, row_slices
from trillium.frameworks.kd.resend import Heard
from trillium.tasks import Example, Task
from trillium.wire.kinds import MessageError
from trillium.wire.message import Message, received
from trillium.wire.soft_labels import SoftLabels

if TYPE_CHECKING:
    from trillium.frameworks.kd.settings import KDSettings

# Examples, rows of those that were sent, what was sent; returns the labels of all.
Completion = Callable[[Sequence[int], dict[int, slice], SoftLabels], SoftLabels]


def read_opinion(
    reply: Message,
    task: Task,
    examples: Sequence[Example],
    num_classes: int,
    ensemble: Ensemble,
    complete: Completion | None = None,
    probe: Probe | None = None,
) -> Opinion:
    """Check what a client has answered.

    Args:
        reply: from the client.
        task: of the run.
        examples: what it was asked about, in its tokens.
        num_classes: of its predictions.
        ensemble: says what else was asked.
        complete: makes the labels whole of which a client sends only those that have changed.
        probe: says of which size hidden states are, if there are to be any.

    Raises:
        MessageError: something is missing, of a wrong shape, or unreadable.
    """
    kept = [examples[i] for i in read_mask(reply, "control/kept", len(examples))]
    sent = kept
    if complete is not None:
        sent = [kept[i] for i in read_mask(reply, "control/changed", len(kept))]
    slices = row_slices(task, sent)
    num_rows = sum(task.num_targets(example) for example in sent)
    labels = received(reply, "logits/public", num_rows, num_classes)
    indices = [example.index for example in kept]
    counts = None
    if ensemble.needs_counts:
        counts = reply.tensor("control/counts", torch.float64, (num_classes,))
        if bool((counts < 0).any()):
            raise MessageError("a class that a client has less than none of")
    return Opinion(
        weight=reply.positive("control/weight"),
        loss=reply.scalar("control/loss"),
        indices=indices,
        labels=labels if complete is None else complete(indices, slices, labels),
        hidden=read_hidden(reply, PUBLIC, sum(map(task.num_targets, kept)), probe),
        counts=counts,
    )


def ask_opinions(
    framework: KDSettings, server: Server, fleet: Fleet, wanted: Sequence[int]
) -> tuple[list[Opinion], Metrics]:
    """Return what the clients say of public examples, sorted by name, and what of it was lost.

    Args:
        framework: says how they are asked.
        server: who asks.
        fleet: the clients.
        wanted: the examples.
    """
    tensors = choice("control/wanted", wanted, len(server.public))
    heard, probe = Heard(server.store.setdefault("heard", {})), framework.hidden.probe(server)
    for client in fleet.newcomers:
        heard.lose(client)
    messages: dict[int, Message] = {}
    asks, reads = {}, {}
    for client in fleet.cohort:
        number, complete = 0, None
        if framework.resend is not None:
            number, complete = heard.number(client), partial(heard.whole, client)
        meta = {} if complete is None else {"heard": number}
        asks[client] = messages.setdefault(number, Message("teach", tensors, meta))
        dialect = server.dialects.get(client, spoken(server))
        reads[client] = partial(
            read_opinion,
            task=server.task,
            examples=examples_at(dialect.public, wanted),
            num_classes=dialect.num_classes,
            ensemble=framework.ensemble,
            complete=complete,
            probe=probe,
        )
    opinions, losses = [], []
    for client, opinion in sorted(fleet.ask(asks, reads), key=lambda pair: pair[0]):
        if framework.resend is not None:
            dialect = server.dialects.get(client, spoken(server))
            slices = row_slices(server.task, examples_at(dialect.public, opinion.indices))
            heard.keep(client, server.round, slices, opinion.labels)
        own, lost = opinion_of(server, fleet, client, opinion, framework.unmatched_tokens)
        opinions.append(own)
        losses += [lost] if lost else []
    return opinions, mean_metrics({str(number): lost for number, lost in enumerate(losses)})
