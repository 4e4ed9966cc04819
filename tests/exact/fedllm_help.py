"""What the tests of FedLLM's settings share: what crossed, and what the adapted weights became."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tiny import (
    Recorder,
)
from trillium.experiment.run import Experiment
from trillium.models.slots import values
from trillium.wire.kinds import Tensors
from trillium.wire.message import Message
from trillium.wire.wire import Direction

SGD = ("training.optimizer={name: sgd, lr: 0.1}", "training.max_grad_norm=null")
SIGN = ("framework.download=change", "wire.up=[sign]", "wire.down=[sign]")
SMALL = "tiers={small: {clients: [client-0], rank: 1}, mid: {clients: [client-1], rank: 2}}"
SKEWED = "data.partition={name: size_skewed, power: 1.0}"
UNEQUAL = (SKEWED, "training.local_epochs=2")


def crossed(log: Recorder, fed: Experiment, direction: Direction) -> list[tuple[str, Message]]:
    """Return client and message of every ask, as the other side reads it."""
    data = [(name, up if direction == "up" else down) for name, down, up in log.log]
    return [(name, fed.fleet.wire_of(name).unpack(d, direction).message) for name, d in data]


def size(message: Message, kind: Any = "parameters") -> int:
    """Return how many numbers of a kind a message brings."""
    return sum(tensor.numel() for tensor in message.group(kind).values())


def numel(fed: Experiment, part: str) -> int:
    return sum(t.numel() for name, t in fed.model.initial.items() if part in name)


def change(fed: Experiment, tensors: Tensors, base: Tensors) -> dict[str, Tensor]:
    """Return what the adapted weights changed by, `(out, in)` by layer."""
    found = {}
    for layer in fed.model.factors:
        start = fed.model.base[layer.layer].double()
        folded = base.get(layer.layer, start).double() - start
        product = layer.scale * tensors[layer.b].double() @ tensors[layer.a].double()
        found[layer.layer] = product + (folded.T if layer.transposed else folded)
    return {name: tensor.detach() for name, tensor in found.items()}


def server_change(fed: Experiment) -> dict[str, Tensor]:
    return change(fed, values(fed.server.state), fed.server.base)


def client_changes(fed: Experiment, log: Recorder, like: Tensors) -> list[dict[str, Tensor]]:
    """Return what each client made of the state `like` that it received, with its own base."""
    found = []
    for client, (_, reply) in zip(fed.clients, crossed(log, fed, "up"), strict=True):
        update = reply.expect("parameters", like)
        reached = {name: like[name] + update[name] for name in like}
        found.append(change(fed, reached, client.base))
    return found


def mean(fed: Experiment, changes: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    weights = [client.weight for client in fed.clients]
    return {
        name: sum((w * c[name] for w, c in zip(weights, changes, strict=True)), torch.zeros(()))
        / sum(weights)
        for name in changes[0]
    }


def furthest(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    return max(float((found[name] - wanted[name]).abs().max()) for name in wanted)


def side_of(fed: Experiment, number: int) -> Any:
    fed.server.round = number
    return fed.server


def verb(fed: Experiment, reply: bytes) -> str:
    return fed.config.wire.unpack(reply, "up").message.verb
