"""What clients say of public examples: how they are asked, and how their answers are checked."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from trillium.federation.fleet import Fleet
from trillium.federation.server import Server
from trillium.federation.side import Metrics
from trillium.frameworks import mean_metrics
from trillium.frameworks.kd.dialect import spoken
from trillium.frameworks.kd.dialects import opinion_of
from trillium.frameworks.kd.ensembles import Ensemble
from trillium.frameworks.kd.opinion import Opinion
from trillium.frameworks.kd.public import choice, examples_at
from trillium.frameworks.kd.settings import KDSettings
from trillium.frameworks.kd.teacher import apart, predictions
from trillium.tasks import Example, Task
from trillium.wire.kinds import MessageError
from trillium.wire.message import Message, received


def read_opinion(
    reply: Message,
    task: Task,
    examples: Sequence[Example],
    num_classes: int,
    ensemble: Ensemble,
) -> Opinion:
    """Check what a client has answered; `MessageError` if it is not of this form."""
    num_rows = sum(task.num_targets(example) for example in examples)
    labels = received(reply, "logits/public", num_rows, num_classes)
    counts = None
    if ensemble.needs_counts:
        counts = reply.tensor("control/counts", torch.float64, (num_classes,))
        if not bool((counts >= 0).all()):
            raise MessageError("a class that a client has less than none of")
    return Opinion(
        weight=reply.positive("control/weight"),
        loss=reply.scalar("control/loss"),
        labels=labels,
        counts=counts,
    )


def ask_opinions(
    framework: KDSettings, server: Server, fleet: Fleet, wanted: Sequence[int]
) -> tuple[list[Opinion], Metrics]:
    """Return what the clients say of public examples, sorted by name, and what of it was lost."""
    message = Message("teach", choice("control/wanted", wanted, len(server.public)))
    reads = {}
    for client in fleet.cohort:
        dialect = server.dialects.get(client, spoken(server))
        reads[client] = partial(
            read_opinion,
            task=server.task,
            examples=examples_at(dialect.public, wanted),
            num_classes=dialect.num_classes,
            ensemble=framework.ensemble,
        )
    opinions, losses = dict[str, Opinion](), []
    asks = dict.fromkeys(fleet.cohort, message)
    for client, opinion in fleet.ask_all(asks, reads).items():
        own, lost = opinion_of(server, fleet, client, opinion, wanted)
        opinions[client] = own
        losses += [lost] if lost else []
    shape = predictions(server, examples_at(server.public, wanted))
    fleet.sizes.apart = partial(apart, opinions, *shape)
    return [*opinions.values()], mean_metrics(
        {str(number): lost for number, lost in enumerate(losses)}
    )
