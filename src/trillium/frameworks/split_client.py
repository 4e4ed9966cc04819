"""The client's half of Split-FedLLM batch by batch: its blocks forward and back, its steps.

The server's half is `trillium.frameworks.split_exchange`. These are the verbs of `Split`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch
from torch import nn

from trillium.client import Client
from trillium.frameworks.split_delta import HIDDEN, Copies, Delta
from trillium.message import Message, MessageError, named, scalar
from trillium.models.parts import load_values, scaled_step, squared_norm
from trillium.models.ragged import lengths_of, spread, strip
from trillium.models.slots import State, train_only, values
from trillium.tasks import Batch, Example
from trillium.tasks.batches import collate
from trillium.training.loop import batches
from trillium.training.meters import resident_tensors

if TYPE_CHECKING:
    from trillium.frameworks.split import Split


def begin(split: Split, client: Client, message: Message) -> Message:
    """Take the client part and prepare the batches of a round."""
    client.scratch = {}
    parts = split.parts(client.model, client.examples)
    names, small = split.client_names(parts, client.task), split.auxiliary(parts, client.task)
    start = {**client.initial, **(small.initial() if small else {})}
    received = message.expect("parameters", {name: start[name] for name in names})
    mounted = sorted({*names, *parts.head.names, *parts.tail.names})
    state = train_only(client.model.state({name: start[name] for name in mounted}), names)
    load_values(state, received)
    trained = [state[name] for name in names]
    saved = client.store.get("optimizer")
    if split.delta is not None:
        Copies(client.store.setdefault("copies", {})).agree(int(message.scalar("control/copies")))
        client.scratch["skip"] = message.not_negative("control/skip")
    client.scratch |= {
        "state": state,
        "optimizer": client.training.optimizer.build(trained, saved) if trained else None,
        "batches": batches(client.examples, client.training, client.generator("batches")),
    }
    num_steps = client.training.num_steps(len(client.examples))
    return Message("begin", {"control/num_steps": scalar(num_steps)})


def forward(split: Split, client: Client, message: Message) -> Message:
    """Take the step that is due, then run the first blocks on the next batch."""
    _take_step(client, message)
    parts = split.parts(client.model, client.examples)
    chunk = next(client.scratch["batches"], None)
    if chunk is None:
        raise MessageError("forward: the round has no batches left")
    batch = collate(chunk, client.model.tokenizer.pad_token_id, client.model.device)
    parts.head.mount(client.scratch["state"])
    head = parts.split.head.train()
    measured = _measured(split, client, "head forward", batch, head)
    small = split.auxiliary(parts, client.task)
    with measured, torch.set_grad_enabled(split.head_trains(parts)):
        hidden = head(None, input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        if small is not None:
            loss, count = small.loss(client.scratch["state"], hidden, batch)
            (loss / max(count, 1)).backward()  # type: ignore[no-untyped-call]
            hidden = hidden.detach()
    client.scratch["pending"] = (batch, hidden)
    rows = split.defence.apply(strip(hidden.detach(), batch.attention_mask))
    sent = {HIDDEN: rows} if split.delta is None else _changes(split.delta, client, rows, chunk)
    tensors = {**sent, **lengths_of(batch.attention_mask)}
    if small is not None:
        norm = squared_norm(client.scratch["state"].values())
        tensors["control/squared_norm"] = scalar(norm)
    if split.shape == "two_part":
        per_text = batch.labels.dim() == 1
        labels = batch.labels if per_text else strip(batch.labels, batch.attention_mask)
        tensors["labels/labels"] = labels.int()
    else:
        tensors["control/count"] = scalar(client.task.num_supervised(batch.labels))
    return Message("forward", tensors)


def finish_batch(split: Split, client: Client, message: Message) -> Message:
    """Run the last blocks and the loss on the server's output; answer with its gradient."""
    parts = split.parts(client.model, client.examples)
    tail = parts.split.tail
    if tail is None or "pending" not in client.scratch:
        raise MessageError("finish_batch: there is no batch that ends at the client")
    batch, hidden = client.scratch["pending"]
    mask = batch.attention_mask
    share = message.positive("control/share")
    flat = message.floats("activations/output", (int(mask.sum()), hidden.shape[-1]))
    output = spread(flat.to(hidden.device, hidden.dtype), mask).requires_grad_()
    state: State = client.scratch["state"]
    parts.tail.mount(state)
    with _measured(split, client, "tail", batch, tail.train()):
        logits = tail(output, **batch.inputs)
        loss, count = client.task.loss_sum(logits, batch.labels)
        (loss / max(count, 1)).backward()  # type: ignore[no-untyped-call]
    assert output.grad is not None
    return Message(
        "finish_batch",
        {
            # The server's gradients are of the mean over all clients' predictions.
            "gradients/output": strip(output.grad, mask) * share,
            "control/loss": scalar(float(loss.detach())),
            "control/squared_norm": scalar(squared_norm(state[n] for n in parts.tail.names)),
        },
    )


def backward(split: Split, client: Client, message: Message) -> Message:
    """Take the gradient of the activations through the first blocks."""
    if "pending" not in client.scratch:
        raise MessageError("backward: there is no batch under way")
    parts = split.parts(client.model, client.examples)
    batch, hidden = client.scratch["pending"]
    mask = batch.attention_mask
    flat = message.floats("gradients/hidden", (int(mask.sum()), hidden.shape[-1]))
    if not hidden.requires_grad:
        raise MessageError("backward: the first blocks of this client are frozen")
    parts.head.mount(client.scratch["state"])  # another client's may be there since `forward`
    # Padding is added outside of the measured work, whose cost is to depend on the layout alone.
    gradient = spread(flat.to(hidden.device, hidden.dtype), mask)
    with _measured(split, client, "head backward", batch, parts.split.head):
        hidden.backward(gradient)
    del client.scratch["pending"]
    state: State = client.scratch["state"]
    norm = squared_norm(state[name] for name in parts.head.names)
    return Message("backward", {"control/squared_norm": scalar(norm)})


def finish(split: Split, client: Client, message: Message) -> Message:
    """Take the last step and hand back the client part."""
    _take_step(client, message)
    names = split.client_names(split.parts(client.model, client.examples), client.task)
    trained = values({name: client.scratch["state"][name] for name in names})
    if client.scratch["optimizer"] is not None:
        client.store["optimizer"] = client.scratch["optimizer"].state_dict()
    client.scratch = {}
    weight = {"control/weight": scalar(client.weight)}
    return Message("finish", {**named("parameters", trained), **weight})


def _changes(
    delta: Delta, client: Client, rows: torch.Tensor, chunk: list[Example]
) -> dict[str, torch.Tensor]:
    """Return the activations of a batch as changes against the copies that both sides hold."""
    return Copies(client.store["copies"]).write(
        torch.split(rows, [example.num_tokens for example in chunk]),
        [example.index for example in chunk],
        client.wire,
        client.round,
        delta,
        client.scratch["skip"],
    )


def _take_step(client: Client, message: Message) -> None:
    """Step with the scale and learning rate of the server, if a gradient is waiting."""
    if "state" not in client.scratch:
        raise MessageError(f"{message.verb}: no round was begun with this client")
    scale, rate = message.tensor("control/step", torch.float64, (2,)).tolist()
    optimizer = client.scratch["optimizer"]
    due = any(parameter.grad is not None for parameter in client.scratch["state"].values())
    if optimizer is not None and due:
        with client.meter.measure("client step"):
            scaled_step(optimizer, scale, rate)


def _measured(
    split: Split, client: Client, what: str, batch: Batch, part: nn.Module
) -> AbstractContextManager[None]:
    optimizer = client.scratch["optimizer"]
    optimizers = [optimizer] if optimizer is not None else []
    stepped = any(optimizer.state for optimizer in optimizers)  # its moments take memory then
    key = (what, batch.layout, split.cut, split.tail, split.train, stepped)
    return client.meter.measure(key, lambda: resident_tensors(part, *optimizers))
