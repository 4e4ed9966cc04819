"""Heads in closed form on paper: the four asks before the first round, each run by its real verb.

Features of all batches are counted by layout; statistics and losses come from the verbs themselves, on
features without values.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from trillium.federation.client import Client
from trillium.frameworks.heads import Head
from trillium.frameworks.heads.closed_form import BATCH, ClosedForm
from trillium.models.heads import head_layer
from trillium.plan.features import run_features
from trillium.plan.federation import Federation
from trillium.plan.sizes import Weight
from trillium.plan.waves import FREE, Ask, Wave, Work
from trillium.tasks.batches import by_length
from trillium.wire.message import Message, named, scalar

_VERBS = ("feature_moments", "head_statistics", "receive_head", "use_head")


@dataclass
class HeadPhase:
    """What crosses and is computed before the first round.

    Attributes:
        head: its settings.
        federation: both sides.
    """

    head: Head
    federation: Federation
    _known: dict[Hashable, tuple[tuple[Weight, Weight], Work]] = field(default_factory=dict)

    def start(self) -> Iterator[Wave]:
        """Return the asks, group after group of clients with one model; none for a head at random."""
        if not isinstance(self.head, ClosedForm):
            return
        for group in self.federation.server.groups:
            for verb in _VERBS if group else ():
                yield Wave(tuple(self._ask(self.head, verb, name) for name in sorted(group)))

    def _ask(self, head: ClosedForm, verb: str, name: str) -> Ask:
        client = self.federation.clients[name]
        labels = self._labels(client)
        present = len({*labels.tolist()})
        key = (verb, id(client.model), id(client.tier), len(labels), present)
        if key not in self._known:
            self._known[key] = self._run(head, verb, client, labels)
        (down, up), cost = self._known[key]
        if verb == "feature_moments":
            cost = cost + self._features(client)
        return Ask(name, verb, down, up, cost)

    def _labels(self, client: Client) -> Tensor:
        """Return the classes of a client's examples; of assumed ones, as many as there can be."""
        count = len(client.examples)
        if self.federation.texts.assumed:
            return torch.arange(count) % client.model.num_classes
        return torch.stack([example.labels for example in client.examples])

    def _features(self, client: Client) -> Work:
        if not self.federation.counts:
            return FREE
        lists = by_length(client.examples, BATCH)
        chunks = self.federation.chunked(lists, "features")
        key = ("features", id(client.model))
        return self.federation.summed(chunks, key, partial(run_features, client))

    def _run(
        self, head: ClosedForm, verb: str, client: Client, labels: Tensor
    ) -> tuple[tuple[Weight, Weight], Work]:
        """Run a verb on features without values, and weigh what it is asked and answers."""
        federation, paper = self.federation, self.federation.paper
        prefix, layer = head_layer(client.model.module)
        names = {own: f"{prefix}.{own}" for own, _ in layer.named_parameters()}
        snapshot = {role: client.model.initial[name] for role, name in names.items()}
        width = int(snapshot["weight"].shape[1])
        dtype = torch.promote_types(client.model.dtype, torch.float32)
        message = {
            "feature_moments": lambda: Message(verb),
            "head_statistics": lambda: Message(
                verb, _moments(partial(paper.empty, dtype=dtype), width)
            ),
            "receive_head": lambda: Message(
                verb, {**named("snapshot", snapshot), **_scales(head, client)}
            ),
            "use_head": lambda: Message(verb, {"control/scale": scalar(1.0)}),
        }[verb]()
        client.scratch["features"] = paper.empty(len(labels), width, dtype=dtype), labels
        client.scratch["unscaled_head"] = snapshot
        federation.meter.reset()
        with paper.running():
            reply = getattr(head, verb)(client, message)
        cost = federation.meter.work() if federation.counts else FREE
        client.scratch, client.store = {}, {}
        weights = federation.down(client.name, message), federation.up(client.name, reply)
        return weights, cost


def _moments(empty: Callable[[int], Tensor], width: int) -> dict[str, Tensor]:
    return {"control/mean": empty(width), "control/deviation": empty(width)}


def _scales(head: ClosedForm, client: Client) -> dict[str, Tensor]:
    return {
        "control/scales": torch.tensor(head.scales, dtype=torch.float64),
        "control/gain": scalar(1.0),
        "control/penalty": torch.zeros(client.model.num_classes, dtype=torch.float64),
    }
