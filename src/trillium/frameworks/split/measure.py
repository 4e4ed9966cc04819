"""Measuring a cut model on the clients' held-out rows, across the cut; nothing trains meanwhile.

Down: what was trained of the client's part. Then for each batch, up: the activations at the cut, behind
the defence, and in two parts the labels, of which the server makes counts and sums. In the U shape the
server's output goes down; labels stay with the client, which sends its counts and sums in the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, TypeVar

import torch
from torch import Tensor

from trillium.federation.client import Client, client_verb
from trillium.federation.fleet import Fleet
from trillium.federation.server import Server
from trillium.frameworks.measuring import Tally, tally_readers
from trillium.frameworks.split.delta import HIDDEN
from trillium.frameworks.split.pooled import Forwarded
from trillium.frameworks.split.ragged import lengths_of, spread, strip
from trillium.frameworks.split.settings import SplitSettings
from trillium.models.parts import Parts
from trillium.models.slots import State
from trillium.tasks import Batch, Example, View
from trillium.tasks.batches import by_tokens, collate
from trillium.training.meters import resident_tensors
from trillium.wire.kinds import MessageError, has_values
from trillium.wire.message import Message, named

MAX_ROWS: Final = 1_000_000  # of one client, whatever it says that it holds back
_OUTPUT = "activations/output"
T = TypeVar("T")


# The server


def measure_across(
    split: SplitSettings, server: Server, fleet: Fleet, clients: Sequence[str], batch_tokens: int
) -> dict[str, Tally]:
    """Return the counts and sums of the model on the held-out rows of each client that has any."""
    task, parts = server.task, split.parts(server.model, server.test)
    part = {n: server.state[n].detach() for n in split.text_names(parts, server.training)}
    opening = Message("measure", named("snapshot", part), {"batch_tokens": batch_tokens})
    by_rows = server.training.model_copy(update={"batch_size": max(batch_tokens, 1)})
    tally_of = tally_readers(server, fleet, clients)
    two_part = split.shape == "two_part"
    num_rows = dict.fromkeys(clients, 0)

    def read(client: str, reply: Message) -> Forwarded | Tally:
        if HIDDEN not in reply.tensors:
            return {} if two_part else tally_of[client](reply)
        width, classes = parts.width, parts.num_classes
        found = Forwarded.read(
            reply, task, by_rows, width=width, num_classes=classes, with_labels=two_part
        )
        num_rows[client] += len(found.mask)
        most = min(fleet.agreed.held_out.get(client, MAX_ROWS), MAX_ROWS)
        if (told := num_rows[client]) > most:
            raise MessageError(
                f"{reply.verb}: {told} rows and no end, where it holds {most} back at most; "
                "it is to end with the last of these"
            )
        return found.to(server.model.device, server.model.dtype)

    asks, tallies = dict.fromkeys(clients, opening), dict[str, Tally]()
    seen: dict[str, list[dict[str, Tensor]]] = {client: [] for client in clients}
    while asks:
        reads = {client: partial(read, client) for client in asks}
        answers = fleet.ask_all(asks, reads, "evaluate")
        asks = {}
        for client, found in answers.items():
            if not isinstance(found, Forwarded):
                found = task.closed(seen[client], num_rows[client]) if seen[client] else found
                tallies |= {client: found} if found else {}
                continue
            own = split.parts(server.model, server.test, server.tiers[client].cut)
            output, told = _output(server, own, found), dict[str, Tensor]()
            if not two_part:
                told = {_OUTPUT: strip(output, found.mask)}
            elif found.labels is not None:
                seen[client].append(_observed(server, own, output, found.labels))
            asks[client] = Message("measure_on", told)
    return tallies


def _output(server: Server, parts: Parts, batch: Forwarded) -> Tensor:
    """Return what the server's blocks make of a batch; on paper only its form."""
    body = parts.split.body
    if not has_values(batch.hidden):
        if not body.is_last or body.apart is not None:
            return batch.hidden
        places = batch.mask.shape if server.task.per_token else batch.mask.shape[:1]
        return batch.hidden.new_zeros(*places, parts.num_classes)
    parts.body.mount(server.state)
    with torch.no_grad():
        return body.eval().run(batch.hidden, attention_mask=batch.mask)


def _observed(server: Server, parts: Parts, output: Tensor, labels: Tensor) -> dict[str, Tensor]:
    with torch.no_grad():
        head, names = parts.split.body.apart, server.model.names
        return server.task.observe(View(output, labels, head, names=names))


# The client


@dataclass
class _Measuring:
    """What a client keeps while its held-out rows are measured.

    Attributes:
        state: what is mounted into its parts.
        chunks: the batches that are left.
        batch: that of which the server has the activations.
        seen: what was observed of those before, in the U shape.
    """

    state: State
    chunks: Iterator[list[Example]]
    batch: Batch | None = None
    seen: list[dict[str, Tensor]] = field(default_factory=list)


@client_verb
def measure(split: SplitSettings, client: Client, message: Message) -> Message:
    """Take what was trained of the client's part, and send its first batch of held-out rows."""
    if not client.test:
        return Message("measure")
    names = split.text_names(split.parts_of(client), client.training)
    received = message.expect("snapshot", {name: client.initial[name] for name in names})
    state = client.model.state({**client.initial, **received})
    chunks = by_tokens(client.test, int(message.meta["batch_tokens"]))
    client.scratch["measuring"] = _Measuring(state, chunks)
    return _next(split, client, message)


@client_verb
def measure_on(split: SplitSettings, client: Client, message: Message) -> Message:
    """Finish a batch, in the U shape by the server's output, and send the next one."""
    looking: _Measuring | None = client.scratch.get("measuring")
    if looking is None or looking.batch is None:
        raise MessageError(f"{message.verb}: no batch is being measured")
    if split.shape == "u":
        looking.seen.append(_finished(split, client, message, looking.state, looking.batch))
    return _next(split, client, message)


def _next(split: SplitSettings, client: Client, message: Message) -> Message:
    """Return the next batch as it crosses; the counts and sums, or nothing, when there is none."""
    looking: _Measuring = client.scratch["measuring"]
    chunk = next(looking.chunks, None)
    if chunk is None:
        del client.scratch["measuring"]
        found = client.task.closed(looking.seen, len(client.test)) if looking.seen else {}
        return Message(message.verb, named("measures", found))
    parts = split.parts_of(client)
    batch = looking.batch = collate(chunk, client.model.tokenizer.pad_token_id, client.model.device)
    parts.head.mount(looking.state)
    head = parts.split.head.eval()

    def run() -> Tensor:
        hidden: Tensor = head(None, **batch.inputs)
        return hidden

    hidden = _metered(client, parts, "head", batch, run)
    mask = batch.attention_mask
    rows = split.defence.apply(strip(hidden, mask), client.secret)
    tensors = {HIDDEN: rows, **lengths_of(mask)}
    if split.shape == "two_part":
        labels = strip(batch.labels, mask) if client.task.per_token else batch.labels
        tensors["labels/labels"] = client.task.as_numbers(labels.reshape(-1))
    else:
        tensors["control/count"] = torch.tensor(
            client.task.num_supervised(batch.labels), dtype=torch.float64
        )
    return Message(message.verb, tensors)


def _finished(
    split: SplitSettings, client: Client, message: Message, state: State, batch: Batch
) -> dict[str, Tensor]:
    """Return what is observed of a batch by the server's output."""
    parts, mask = split.parts_of(client), batch.attention_mask
    tail = parts.split.tail
    assert tail is not None, "the U shape has a last part"
    flat = message.floats(_OUTPUT, (int(mask.sum()), parts.width))
    output = spread(flat.to(client.model.device, client.model.dtype), mask)
    parts.tail.mount(state)
    tail.eval()

    def run() -> dict[str, Tensor]:
        found = tail.run(output, **batch.inputs)
        seen = View(found, batch.labels, tail.apart, names=client.model.names)
        return client.task.observe(seen)

    return _metered(client, parts, "tail", batch, run)


def _metered(client: Client, parts: Parts, what: str, batch: Batch, run: Callable[[], T]) -> T:
    """Return what a part makes of a batch, which counts as work of the client."""
    rows = client.task.num_rows(batch.labels) if what == "tail" else 0
    key = (f"measure {what}", batch.layout, parts.split.cut, rows)
    with torch.no_grad():
        return client.meter.run(key, run, partial(resident_tensors, parts.at_client))
