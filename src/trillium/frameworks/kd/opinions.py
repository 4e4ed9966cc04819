"""What clients say of public examples: how they are asked, and how their answers are checked."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from trillium.federation.fleet import Fleet
from trillium.federation.server import Server
from trillium.federation.side import Metrics
from trillium.federation.sums import Form
from trillium.frameworks import mean_metrics
from trillium.frameworks.kd.dialect import spoken
from trillium.frameworks.kd.dialects import opinion_of
from trillium.frameworks.kd.ensembles import Ensemble
from trillium.frameworks.kd.opinion import Opinion
from trillium.frameworks.kd.public import choice, examples_at
from trillium.frameworks.kd.settings import KDSettings
from trillium.frameworks.kd.teacher import apart, predictions
from trillium.wire.addend import Addend
from trillium.wire.kinds import MessageError
from trillium.wire.message import Message, received

PUBLIC = "logits/public"


def read_opinion(reply: Message, num_rows: int, num_classes: int, ensemble: Ensemble) -> Opinion:
    """Check what a client has answered; `MessageError` if it is not of this form."""
    counts = None
    if ensemble.needs_counts:
        counts = reply.tensor("control/counts", torch.float64, (num_classes,))
        if not bool((counts >= 0).all()):
            raise MessageError("a class that a client has less than none of")
    return Opinion(
        weight=reply.positive("control/weight"),
        loss=reply.scalar("control/loss"),
        labels=received(reply, PUBLIC, num_rows, num_classes),
        counts=counts,
    )


def ask_opinions(
    framework: KDSettings, server: Server, fleet: Fleet, wanted: Sequence[int]
) -> tuple[list[Opinion] | Tensor, Metrics]:
    """Return what the clients say of public examples, sorted by name, and measures of it.

    Where no client is seen alone, it is the mean over them of what each adds for the ensemble.
    """
    shape = predictions(server, examples_at(server.public, wanted))
    message = Message("teach", choice("control/wanted", wanted, len(server.public)))
    asks = dict.fromkeys(fleet.cohort, message)
    shapes = {}
    for client in asks:
        dialect = server.dialects.get(client, spoken(server))
        examples = examples_at(dialect.public, wanted)
        rows = sum(server.task.num_targets(example) for example in examples)
        shapes[client] = rows, dialect.num_classes
    ensemble = framework.ensemble
    if ensemble.adds:
        forms = {client: _form(framework, *own) for client, own in shapes.items()}
        added = dict(sorted(fleet.addends(asks, forms, _form(framework, *shape))))
        if "" in added:
            return added[""].tensors[PUBLIC], {}
        said = {n: Opinion(a.weight, a.figures["loss"], a.labels[PUBLIC]) for n, a in added.items()}
    else:
        reads = {
            client: partial(read_opinion, num_rows=rows, num_classes=classes, ensemble=ensemble)
            for client, (rows, classes) in shapes.items()
        }
        said = fleet.ask_all(asks, reads)
    opinions, losses = dict[str, Opinion](), []
    for client, opinion in said.items():
        own, lost = opinion_of(server, fleet, client, opinion, wanted)
        opinions[client] = own
        losses += [lost] if lost else []
    fleet.sizes.apart = partial(apart, opinions, *shape)
    metrics = mean_metrics({str(number): lost for number, lost in enumerate(losses)})
    metrics["train_loss"] = sum(own.loss for own in opinions.values()) / len(opinions)
    return [*opinions.values()], metrics


def _form(framework: KDSettings, num_rows: int, num_classes: int) -> Form:
    """Return what clients add for an ensemble that needs no more than a sum."""

    def read(reply: Message) -> Addend:
        return Addend({}, labels={PUBLIC: received(reply, PUBLIC, num_rows, num_classes)})

    return Form(
        {"logits": {"public": torch.zeros(1, 1).expand(num_rows, num_classes)}},
        figures=("loss",),
        unpack=read,
        reach=framework.ensemble.reach(framework.average),
    )
