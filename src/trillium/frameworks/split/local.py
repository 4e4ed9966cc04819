"""Rounds in which clients train their first blocks by themselves, before these are frozen.

Ampere (2025, arXiv 2507.07130): the first blocks learn from a small head of their own and are averaged
as in federated averaging; then their activations cross once. Both halves of one ask per client and
round: down, the blocks and the small head; up, both after training, a weight and the loss.
"""

from __future__ import annotations

from torch import Tensor, nn

from trillium.federation.client import Client, client_verb
from trillium.federation.fleet import Fleet
from trillium.federation.means import Contribution, weighted_mean
from trillium.federation.server import Server
from trillium.frameworks.split.auxiliary import Auxiliary
from trillium.frameworks.split.settings import SplitSettings
from trillium.models.parts import Parts, load_values
from trillium.models.slots import train_only, values
from trillium.tasks import Batch
from trillium.training.loop import Loop, batches
from trillium.wire.kinds import Tensors
from trillium.wire.message import Message, named, scalar

# The server


def train_first_blocks(server: Server, fleet: Fleet, parts: Parts) -> float:
    """Let the cohort train, and average what it hands back by examples.

    Returns:
        The mean loss of the small head.
    """
    head: Tensors = server.store.setdefault("auxiliary", Auxiliary(parts, server.task).initial())
    like = {n: server.state[n].detach() for n in parts.head.names} | head
    like = dict(sorted(like.items()))
    message = Message("train_blocks", named("parameters", like))

    def read(reply: Message) -> tuple[float, float, Tensors]:
        weight, loss = reply.positive("control/weight"), reply.scalar("control/loss")
        return weight, loss, reply.near("parameters", like, replaces=True)

    replies = fleet.ask_all(dict.fromkeys(fleet.cohort, message), read)
    sent = [Contribution(client, weight, found) for client, (weight, _, found) in replies.items()]
    mean = weighted_mean(sent, sent[0].tensors)
    load_values(server.state, {name: mean[name] for name in parts.head.names})
    server.store["auxiliary"] = {name: mean[name] for name in head}
    total = sum(weight for weight, _, _ in replies.values())
    return sum(weight * loss for weight, loss, _ in replies.values()) / total


# The client


@client_verb
def train_blocks(split: SplitSettings, client: Client, message: Message) -> Message:
    """Train the first blocks and the small head for a round, and hand both back."""
    parts = split.parts(client.model, client.examples)
    head = Auxiliary(parts, client.task)
    names = sorted({*parts.head.names, *head.initial()})
    start = {**client.initial, **head.initial()}
    received = message.expect("parameters", {name: start[name] for name in names})
    device = client.model.device
    state = {name: nn.Parameter(t.to(device, copy=True)) for name, t in received.items()}
    parts.head.mount(train_only(state, names))

    adjustment = client.task.adjustment(client.examples)

    def objective(module: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        hidden = module(None, input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        return head.loss(state, hidden, batch, adjustment)

    pad_id = client.model.tokenizer.pad_token_id
    label, task = f"blocks to {split.cut}", client.task
    meter, training = client.meter, client.training
    loop = Loop(parts.split.head, state, pad_id, device, meter, label, task, training)
    trained = loop.fit(
        batches(client.examples, client.training, client.generator("batches")),
        objective,
        client.training,
        client.progress,
        client.training.num_steps(len(client.examples)),
    )
    control = {"control/weight": scalar(client.weight), "control/loss": scalar(trained.loss)}
    on_cpu = {name: tensor.cpu() for name, tensor in values(state).items()}
    return Message("train_blocks", {**named("parameters", on_cpu), **control})
