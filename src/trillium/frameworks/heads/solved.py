"""Heads that are computed and handed out before the first round: how they reach the clients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final

import torch
from torch import Tensor

from trillium.errors import UserError
from trillium.federation.client import Client, client_verb
from trillium.federation.fleet import Fleet
from trillium.federation.server import Server
from trillium.federation.setting import Setting
from trillium.federation.side import Side
from trillium.frameworks.heads import Head
from trillium.models.heads import features, head_layer
from trillium.tasks import Batch, Example
from trillium.tasks.batches import by_length, collate
from trillium.training.meters import resident_tensors
from trillium.wire.kinds import MessageError, Tensors
from trillium.wire.message import Message, named, scalar
from trillium.wire.wire import Wire

BATCH = 32  # examples at once when features are computed; changes memory, not results
OWN: Final = "0"  # the group of the clients that have the server's model


class Solved(Head):
    """A head that the server finds by asking, before the first round."""

    runs_model: ClassVar[bool] = True

    def check(self, config: Setting) -> None:
        """Refuse tasks without classes."""
        if not config.task.has_classes:
            raise UserError(
                f"head={self.name} with task={config.task.name}",
                "its closed form is of examples that have one class each",
                "Write head=random",
            )

    # The server

    def find(self, server: Server, fleet: Fleet, group: str, clients: Sequence[str]) -> None:
        """Ask the clients of a model; leave their head in `store["heads"]`, and give it to them."""
        raise NotImplementedError

    def start(self, server: Server, fleet: Fleet) -> None:
        """Find the head of each model, and start from it."""
        names = names_of(server)
        server.store["heads"], server.store["head_informed"] = {}, []
        for number, group in enumerate(server.groups):
            if clients := [client for client in fleet.cohort if client in group]:
                self.find(server, fleet, str(number), clients)
        own = server.store["heads"].get(OWN)
        if own is not None:
            values = scaled(own["unscaled"], own["scale"])
            server.store["head"] = {names[role]: tensor for role, tensor in values.items()}
            server.state = server.model.state(server.initial)

    def inform(self, server: Server, fleet: Fleet) -> None:
        """Give the head to clients that come late or have lost it."""
        informed = {*server.store["head_informed"]} - fleet.newcomers
        for number, group in enumerate(server.groups):
            late = [client for client in fleet.cohort if client in group and client not in informed]
            found = server.store["heads"].get(str(number))
            if late and found is not None:
                scale = scalar(found["scale"])
                tensors = {**named("snapshot", found["unscaled"]), "control/scale": scale}
                informed |= fleet.tell(dict.fromkeys(late, Message("use_head", tensors)))
        server.store["head_informed"] = sorted(informed)

    # The client

    @client_verb
    def use_head(self, client: Client, message: Message) -> Message:
        """Start from the head at the scale that was found."""
        client.scratch.pop("features", None)
        kept = client.scratch.pop("unscaled_head", None)
        head = received(client, message) if message.group("snapshot") else kept
        if head is None:
            raise MessageError("use_head: this client has received no head")
        names, values = names_of(client), scaled(head, message.positive("control/scale"))
        client.store["head"] = {names[role]: tensor for role, tensor in values.items()}
        return Message("use_head")


def names_of(side: Side) -> dict[str, str]:
    """Return the names of the head's parameters by `weight` and, if it has one, `bias`."""
    prefix, layer = head_layer(side.model.module)
    names = {own: f"{prefix}.{own}" for own, _ in layer.named_parameters()}
    frozen = sorted(set(names.values()) - side.model.initial.keys())
    if frozen:
        raise UserError(
            "a head in closed form",
            f"the adapter leaves the head as it is ({', '.join(frozen)} does not train)",
            "Write head=random, or an adapter that trains the head",
        )
    return names


def received(client: Client, message: Message) -> Tensors:
    """Return the head of a message, by role."""
    names = names_of(client)
    return message.expect("snapshot", {role: client.model.initial[n] for role, n in names.items()})


def crossed(fleet: Fleet, clients: Sequence[str], head: Tensors) -> Tensors:
    """Return the head as the codecs leave it, so that all sides start from equal bits."""
    wires: list[Wire] = []
    for client in clients:
        if fleet.wire_of(client) not in wires:
            wires.append(fleet.wire_of(client))

    def arrives(head: Tensors, wire: Wire, verb: str) -> Tensors:
        message = Message(verb, named("snapshot", head), {"round": fleet.round})
        return wire.preview(message, "down").seen.expect("snapshot", head)

    for wire in wires:
        head = arrives(head, wire, "receive_head")
    for wire in wires:
        for verb in ("receive_head", "use_head"):
            found = arrives(head, wire, verb)
            if any(not torch.equal(found[name], head[name]) for name in head):
                raise UserError(
                    f"the codecs of wire.down for snapshot, {[c.name for c in wire.down]}",
                    "they would change the head on its way, so that the sides start differently",
                    "Leave snapshot out of their kinds, or cast it to float16",
                )
    return head


def scaled(head: Tensors, scale: float) -> Tensors:
    """Return a head whose logits are multiplied."""
    return {name: tensor * scale for name, tensor in head.items()}


def dtype_of(side: Side) -> torch.dtype:
    """The dtype that statistics have before the codecs."""
    return torch.promote_types(side.model.dtype, torch.float32)


def features_of(client: Client) -> tuple[Tensor, Tensor]:
    """Return features `(rows, width)` and classes `(rows,)` of the client's data, on the CPU.

    A row is a text, or a word where words have classes. Computed once in a round.
    """
    if "features" not in client.scratch:
        client.scratch["features"] = look_at(client, client.examples)
    kept: tuple[Tensor, Tensor] = client.scratch["features"]
    return kept


@torch.inference_mode()
def look_at(side: Side, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """Return features and classes of examples, by the model as it was loaded, without dropout."""
    model = side.model
    module = model.mount(model.state()).eval()
    found, labels = [], []
    with features(module):
        for chunk in by_length(side.known(examples), BATCH):
            batch = collate(chunk, model.tokenizer.pad_token_id, model.device)

            def look(batch: Batch = batch) -> Tensor:
                rows: Tensor = module(**batch.inputs).logits
                return rows.to(dtype_of(side)).cpu()

            key = ("features", batch.layout)
            seen = side.meter.run(key, look, lambda: resident_tensors(module))
            counted, targets = side.task.select(seen, batch.labels.cpu())
            found.append(counted)
            labels.append(targets)
    return torch.cat(found), torch.cat(labels)
