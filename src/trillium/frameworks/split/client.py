"""The client's half of Split-FedLLM batch by batch: its blocks forward and back, its steps.

The server's half is `trillium.frameworks.split.exchange`. These are the verbs of `Split`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn

from trillium.federation.client import Client, client_verb
from trillium.frameworks.split.body import scaled_step, squared_norm
from trillium.frameworks.split.delta import GRADIENT, HIDDEN, SAMPLES, Copies, Delta
from trillium.frameworks.split.micro import in_parts, noting, paddings, places, rows_at_once
from trillium.frameworks.split.pending import Pending, pending_of
from trillium.frameworks.split.pooled import REFERENCE
from trillium.frameworks.split.ragged import lengths_of, spread, strip
from trillium.frameworks.split.settings import SplitSettings
from trillium.models.parts import Parts, load_values
from trillium.models.slots import State, train_only, values
from trillium.tasks import Batch, Example
from trillium.tasks.batches import collate
from trillium.tasks.preference import without_adapter
from trillium.training.loop import batches
from trillium.training.meters import resident_tensors
from trillium.wire.kinds import MessageError
from trillium.wire.message import Message, named, scalar


@client_verb
def begin(split: SplitSettings, client: Client, message: Message) -> Message:
    """Take the client part and prepare the batches of a round."""
    client.scratch = {}
    parts = split.parts(client.model, client.examples)
    names, start = split.client_names(parts, client.training), client.initial
    received = message.expect("parameters", {name: start[name] for name in names})
    mounted = sorted({*names, *parts.head.names, *parts.tail.names})
    state = train_only(client.model.state({name: start[name] for name in mounted}), names)
    load_values(state, received)
    places = [replace(example, index=place) for place, example in enumerate(client.examples)]
    saved = client.store.get("optimizer")
    if split.delta is not None:
        Copies(client.store.setdefault("copies", {})).agree(int(message.scalar("control/copies")))
        client.scratch["skip"] = message.not_negative("control/skip")
    client.scratch |= {
        "state": state,
        "optimizer": client.training.build(state, saved) if names else None,
        "pending": deque(),
        "batches": batches(places, client.training, client.generator("batches")),
    }
    num_steps = client.training.num_steps(len(client.examples))
    return Message("begin", {"control/num_steps": scalar(num_steps)})


@client_verb
def forward(split: SplitSettings, client: Client, message: Message) -> Message:
    """Take the step that is due, then run the first blocks on the next batch."""
    _take_step(client, message)
    parts = split.parts(client.model, client.examples)
    chunk, batch = _next_batch(client, message)
    pending: deque[Pending] = client.scratch["pending"]
    if len(pending) > split.staleness:
        raise MessageError(f"forward: {len(pending)} batches are under way")
    trains = split.head_trains(parts, client.training)
    weights: State = client.scratch["state"]
    if trains and split.staleness:  # its gradient is taken after these have moved on
        weights = {name: _copy(weights[name]) for name in parts.head.names}
    parts.head.mount(weights)
    head, kept = parts.split.head.train(), list[Tensor]()
    keeping = noting(kept) if trains and split.staleness else nullcontext()

    def part(input_ids: Tensor, mask: Tensor) -> Tensor:
        with client.training.precision(mask.device):
            found: Tensor = head(None, input_ids=input_ids, attention_mask=mask)
        return found.to(client.model.dtype)

    def run() -> tuple[Tensor, list[Tensor], Tensor | None]:
        size, reference = rows_at_once(client.training, client.task), None
        if split.sends_reference(client.task, parts, client.training):
            with torch.no_grad(), without_adapter(head):
                reference = in_parts(part, size, batch.input_ids, batch.attention_mask)
        return in_parts(part, size, batch.input_ids, batch.attention_mask), kept, reference

    key, resident = _cost(split, client, "head forward", batch, parts, pending)
    with torch.set_grad_enabled(trains), keeping:
        hidden, kept, reference = client.meter.run(key, run, resident)
    if trains or parts.split.tail is not None:
        pending.append(Pending(batch, hidden, weights, kept))
    rows = split.defence.apply(strip(hidden.detach(), batch.attention_mask), client.secret)
    found = Message("forward", {HIDDEN: rows})
    if split.delta is not None:
        found = _changes(split.delta, client, rows, chunk)
    tensors = {**found.tensors, **lengths_of(batch.attention_mask)}
    if reference is not None:
        tensors[REFERENCE] = strip(reference, batch.attention_mask)
    if split.shape == "two_part":
        per_token = client.task.per_token
        labels = strip(batch.labels, batch.attention_mask) if per_token else batch.labels
        tensors["labels/labels"] = client.task.as_numbers(labels.reshape(-1))
    else:
        tensors["control/count"] = scalar(client.task.num_supervised(batch.labels))
    return replace(found, tensors=tensors)


@client_verb
def finish_batch(split: SplitSettings, client: Client, message: Message) -> Message:
    """Run the last blocks and the loss on the server's output; answer with its gradient."""
    parts = split.parts(client.model, client.examples)
    tail = parts.split.tail
    if tail is None:
        raise MessageError("finish_batch: no batch ends at the client")
    if SAMPLES in message.tensors:
        _take_up(client, message)
    pending = pending_of(client, message)
    _take_late_step(client, message)
    batch = pending[0].batch
    mask = batch.attention_mask
    share = message.positive("control/share")
    flat = message.floats("activations/output", (int(mask.sum()), parts.width))
    output = spread(flat.to(client.model.device, client.model.dtype), mask).requires_grad_()
    state: State = client.scratch["state"]
    parts.tail.mount(state)
    task, adjustment = client.task, client.task.adjustment(client.examples)
    before: Tensor | None = None
    if task.compares:
        flat = message.floats(REFERENCE, (int(mask.sum()), parts.width))
        before = spread(flat.to(output.device, output.dtype), mask)

    parted = [*places(len(mask), rows_at_once(client.training, task))]
    counts = [task.num_supervised(batch.labels[rows]) for rows in parted]

    def run() -> Tensor:
        total = output.new_zeros(())
        for rows in parted:
            inputs = {name: tensor[rows] for name, tensor in batch.inputs.items()}
            labels, reference = batch.labels[rows], None
            with client.training.precision(mask.device):
                if before is not None:
                    with torch.no_grad(), without_adapter(tail):
                        found = tail.run(before[rows], **inputs)
                        reference = task.scores(found, labels, tail.apart)
                found = tail.run(output[rows], **inputs)
                loss, _ = task.loss(found, labels, tail.apart, adjustment, reference)
            (loss / max(sum(counts), 1)).backward()  # type: ignore[no-untyped-call]
            total = total + loss.detach()
        return total

    scored = [task.num_rows(batch.labels[rows]) for rows in parted]
    what = f"tail of {0 if tail.apart is None else scored}"
    tail.train()
    key, resident = _cost(split, client, what, batch, parts, [*pending][1:])
    fills = [output, *(state[name] for name in parts.tail.names)]
    loss = client.meter.run(key, run, resident, fills=fills)
    assert output.grad is not None
    if not split.head_trains(parts, client.training):
        pending.popleft()
    return Message(
        "finish_batch",
        {
            # The server's gradients are of the mean over all clients' predictions.
            "gradients/output": strip(output.grad, mask) * share,
            "control/loss": scalar(float(loss)),
            "control/squared_norm": scalar(squared_norm(state[n] for n in parts.tail.names)),
        },
    )


@client_verb
def backward(split: SplitSettings, client: Client, message: Message) -> Message:
    """Take the gradient of the activations through the first blocks."""
    pending = pending_of(client, message)
    parts = split.parts(client.model, client.examples)
    batch, hidden = pending[0].batch, pending[0].hidden
    mask = batch.attention_mask
    flat = message.floats(GRADIENT, (int(mask.sum()), parts.width))
    if hidden is None or not hidden.requires_grad:
        raise MessageError("backward: the first blocks of this client are frozen")
    _take_late_step(client, message)
    weights = pending.popleft().weights
    parts.head.mount(weights)  # another client's may be there since `forward`
    # Padding is added outside of the measured work, whose cost is to depend on the layout alone.
    gradient = spread(flat.to(hidden.device, hidden.dtype), mask)

    def run(hidden: Tensor) -> None:
        hidden.backward(gradient)  # type: ignore[no-untyped-call]

    key, resident = _cost(split, client, "head backward", batch, parts, pending)
    fills = [weights[name] for name in parts.head.names]
    client.meter.run(key, run, resident, fills=fills, needs=[hidden])
    state: State = client.scratch["state"]
    for name in parts.head.names if weights is not state else ():
        state[name].grad = weights[name].grad
    norm = squared_norm(state[name] for name in parts.head.names)
    return Message("backward", {"control/squared_norm": scalar(norm)})


@client_verb
def finish(split: SplitSettings, client: Client, message: Message) -> Message:
    """Take the last step and hand back the client part."""
    _take_step(client, message)
    names = split.client_names(split.parts(client.model, client.examples), client.training)
    trained = values({name: client.scratch["state"][name] for name in names})
    if client.scratch["optimizer"] is not None:
        client.store["optimizer"] = client.scratch["optimizer"].state_dict()
    client.scratch = {}
    weight = {"control/weight": scalar(client.weight)}
    return Message("finish", {**named("parameters", trained), **weight})


def _copy(parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad)


def _next_batch(client: Client, message: Message) -> tuple[list[Example], Batch]:
    """Return the examples of the round's next batch, and the batch."""
    chunk: list[Example] | None = next(client.scratch.get("batches", iter(())), None)
    if chunk is None:
        raise MessageError(f"{message.verb}: the round has no batches left")
    return chunk, collate(chunk, client.model.tokenizer.pad_token_id, client.model.device)


def _take_up(client: Client, message: Message) -> None:
    """Take up a batch whose activations the server has kept; it must be this client's next one."""
    chunk, batch = _next_batch(client, message)
    named = message.tensor(SAMPLES, torch.int32, (None,)).tolist()
    if named != [example.index for example in chunk]:
        raise MessageError(f"{message.verb}: samples {named} are not those of the next batch")
    client.scratch["pending"].append(Pending(batch, None, {}, []))


def _changes(delta: Delta, client: Client, rows: torch.Tensor, chunk: list[Example]) -> Message:
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
    scale, rate = message.tensor("control/step", torch.float64, (2,), signed=False).tolist()
    optimizer = client.scratch["optimizer"]
    due = any(parameter.grad is not None for parameter in client.scratch["state"].values())
    if optimizer is not None and due:
        with client.meter.measure("client step"):
            scaled_step(optimizer, scale, rate)


def _take_late_step(client: Client, message: Message) -> None:
    """Take the step that comes with a later message where the client has run its last batch."""
    if "control/step" in message.tensors:
        _take_step(client, message)


def _cost(
    split: SplitSettings,
    client: Client,
    what: str,
    batch: Batch,
    parts: Parts,
    others: Iterable[Pending],
) -> tuple[Hashable, Callable[[], Iterator[Tensor]]]:
    """Return on what the cost of work on a batch depends, others being under way, and what is there."""
    optimizer = client.scratch["optimizer"]
    optimizers = [optimizer] if optimizer is not None else []
    stepped = any(optimizer.state for optimizer in optimizers)  # its moments take memory then
    waiting = tuple(other.batch.layout for other in others)
    size = rows_at_once(client.training, client.task)
    padded = paddings(batch.attention_mask, size)
    key = (what, batch.layout, padded, split.cut, split.tail, split.train, stepped, waiting)

    def resident() -> Iterator[Tensor]:
        # Whichever part works: the frozen tensors of both, and what of this client trains.
        yield from parts.frozen_at_client()
        yield from client.scratch["state"].values()
        yield from resident_tensors(nn.Module(), *optimizers)
        yield from (tensor for other in others for tensor in other.kept)

    return key, resident
