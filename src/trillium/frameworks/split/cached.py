"""Cache-once: activations go up once, and the server trains on them without further traffic.

SplitFrozen (2025, arXiv 2503.18986) freezes the clients' first blocks; Ampere (2025, arXiv 2507.07130)
sends activations a single time. Here whatever is frozen and not random is sent once, in the form that
the codecs for activations give it, and stays in that form.

Each round, to each client of the cohort: a hash of its samples that the server has; up: nothing, or the
digests of its samples; then activations and lengths of those that the server lacks, with labels, or in
the U shape the numbers of predictions that count.

`train` is for `mode=coalesced` in two parts, where all samples are one pool; else batches are those of
clients (`trillium.frameworks.split.kept`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

import torch
from torch import Tensor

from trillium.federation.client import Client, client_verb
from trillium.federation.fleet import Fleet
from trillium.federation.parts import SAMPLES as MOST_SAMPLES
from trillium.federation.server import Server
from trillium.frameworks.split.activation_cache import (
    DIGEST,
    ActivationCache,
    Cached,
    digest_of,
    digest_of_all,
)
from trillium.frameworks.split.bodies import SHARED, shared_body
from trillium.frameworks.split.checks import check_fixed
from trillium.frameworks.split.pooled import Pooled, read_labels
from trillium.frameworks.split.ragged import LENGTHS, mask_of, read_lengths, spread, strip
from trillium.frameworks.split.settings import SplitSettings
from trillium.models.parts import Parts
from trillium.tasks import Example
from trillium.tasks.batches import collate, of_one_length
from trillium.training.loop import batches
from trillium.training.meters import resident_tensors
from trillium.wire.kinds import MessageError
from trillium.wire.message import Message, named, scalar
from trillium.wire.rows import EncodedRows, plain_rows

UPLOAD: Final = MOST_SAMPLES  # of one message: a few MB, so that no side holds all of them at once
MAX_SAMPLES: Final = 100_000_000  # of one client; more can only be an error
_ROWS: Final = "activations/rows"
_LABELS: Final = "labels/labels"
_COUNTS: Final = "control/counts"  # of each sample, the predictions that count


# The server


def collect(
    split: SplitSettings, server: Server, fleet: Fleet, parts: Parts, cache: ActivationCache
) -> None:
    """Ask the cohort for what the cache lacks of their samples."""
    blocks = {name: server.state[name].detach() for name in parts.head.names}
    knowing = {*server.store.get("knowing", ())} - fleet.newcomers
    asks = {}
    for client in fleet.cohort:
        tensors = {"control/held": _to_tensor([cache.state_of(client)])}
        if split.local_rounds and client not in knowing:
            tensors |= named("snapshot", blocks)
        asks[client] = Message("list_samples", tensors)
    todo: dict[str, list[tuple[int, str]]] = {}
    for client, digests in fleet.ask_all(asks, _read_digests).items():
        knowing.add(client)
        if digests is not None:
            cache.announce(client, digests)
            todo[client] = [(p, digests[p]) for p in cache.lacking(client, digests)]
    server.store["knowing"] = sorted(knowing)
    while any(todo.values()):
        turn = {c: wanted[:UPLOAD] for c, wanted in todo.items() if wanted and c in fleet.cohort}
        todo = {client: todo[client][UPLOAD:] for client in turn}
        asks = {
            client: Message(
                "send_activations",
                {"control/positions": torch.tensor([p for p, _ in wanted], dtype=torch.int32)},
            )
            for client, wanted in turn.items()
        }
        read = {
            client: _reader(split, server, parts, len(wanted)) for client, wanted in turn.items()
        }
        for client, (lengths, rows, labels) in fleet.ask_all(asks, read).items():
            own = [digest for _, digest in turn[client]]
            source = server.tiers[client].cut or split.cut
            per_token = split.shape == "two_part" and server.task.per_token
            cache.add(client, own, lengths, rows, labels, per_token=per_token, source=source)


def train(
    split: SplitSettings, server: Server, parts: Parts, cache: ActivationCache
) -> tuple[float, int]:
    """Train the server part for a round on shuffled batches of all cached samples.

    Returns:
        The summed loss and the number of predictions.
    """
    pool, training = cache.pool(), server.training
    if not pool:
        return 0.0, 0
    body = shared_body(server, parts, trains=True)
    num_steps = training.num_steps(len(pool))
    lost, count = 0.0, 0
    for step, chunk in enumerate(batches(pool, training, server.generator("batches"))):
        rows = at_cut(split, server, cache, chunk)
        batch = cache.batch(chunk, server.task, rows, num_outputs=parts.num_classes)
        batch = batch.to(server.model.device, server.model.dtype)
        pooled = Pooled({SHARED: batch})
        body.forward(pooled, gradient=False)
        body.backward(pooled, server.task)
        rate = training.learning_rate(server.progress(step / num_steps))
        body.step(pooled, rate, training.max_grad_norm)
        lost, count = lost + pooled.loss, count + pooled.count
    server.store.setdefault("optimizers", {})[SHARED] = body.optimizer_state()
    return lost, count


def at_cut(
    split: SplitSettings, server: Server, cache: ActivationCache, chunk: Sequence[Cached]
) -> Tensor:
    """Return the activations of samples in front of the blocks that train, `(tokens, width)`.

    Those of clients that hold fewer blocks pass the frozen ones that these lack.
    """
    rows = list(torch.split(cache.rows(chunk), [sample.num_tokens for sample in chunk]))
    for source in sorted({sample.source for sample in chunk} - {split.cut}):
        places = [place for place, sample in enumerate(chunk) if sample.source == source]
        middle = server.model.parts(source, split.cut, server.test[:2])
        middle.body.mount(server.state)
        body = middle.split.body.eval()
        mask = mask_of([len(rows[place]) for place in places]).to(server.model.device)
        flat = torch.cat([rows[place] for place in places])
        hidden = spread(flat.to(server.model.device, server.model.dtype), mask)
        key = ("middle", tuple(mask.shape), bool(mask.all()), source)
        run = partial(body, hidden, attention_mask=mask)
        with torch.no_grad():
            hidden = server.meter.run(key, run, partial(resident_tensors, body))
        sizes = [len(rows[place]) for place in places]
        found = torch.split(strip(hidden, mask).cpu(), sizes)
        for place, row in zip(places, found, strict=True):
            rows[place] = row
    return torch.cat(rows)


Answer = tuple[list[int], EncodedRows, Tensor]


def _reader(
    split: SplitSettings, server: Server, parts: Parts, num_rows: int
) -> Callable[[Message], Answer]:
    """Return what checks the activations of so many samples: their lengths, rows and labels."""

    def read(reply: Message) -> Answer:
        lengths = read_lengths(reply, num_rows, server.training.limit)
        if len(lengths) != num_rows:
            raise MessageError(f"{reply.verb}: {len(lengths)} samples, asked for {num_rows}")
        tokens = int(lengths.sum())
        rows = reply.floats(_ROWS, (tokens, parts.width))
        if split.shape == "two_part":
            labels = read_labels(reply, server.task, num_rows, tokens, parts.num_classes)
        else:
            each = server.task.most_targets(1, parts.num_classes)
            labels = _read_counts(reply, num_rows, lengths if server.task.per_token else each)
        return lengths.tolist(), reply.written.get(_ROWS, plain_rows(rows)), labels

    return read


def _read_counts(reply: Message, num_rows: int, most: Tensor | int) -> Tensor:
    """Return how many predictions of each sample count."""
    counts = reply.tensor(_COUNTS, torch.int32, (num_rows,)).long()
    if not bool(((counts >= 0) & (counts <= most)).all()):
        raise MessageError(f"{reply.verb}: more predictions than there can be, or less than none")
    return counts


def _read_digests(reply: Message) -> list[str] | None:
    """Return the digests of a client's samples, or `None` if the server has just these."""
    if "control/digests" not in reply.tensors:
        if reply.scalar("control/same") == 1:
            return None
        raise MessageError(f"{reply.verb}: control/digests is missing")
    found = reply.tensor("control/digests", torch.uint8, (None, DIGEST))
    if len(found) > MAX_SAMPLES:
        raise MessageError(f"{reply.verb}: {len(found)} samples")
    return [bytes(row).hex() for row in found.numpy()]


# The client


@client_verb
def list_samples(split: SplitSettings, client: Client, message: Message) -> Message:
    """Answer with the digests of all samples, unless the server has just these.

    Where the first blocks have been trained, their final values come with the message.
    """
    if message.group("snapshot"):
        names = split.parts(client.model, client.examples).head.names
        like = {name: client.initial[name] for name in names}
        client.store["blocks"] = message.expect("snapshot", like)
    held = message.tensor("control/held", torch.uint8, (1, DIGEST))
    digests = [digest_of(e.input_ids, _beside(split, client, e)) for e in client.examples]
    if bytes(held[0].numpy()).hex() == digest_of_all(digests):
        return Message("list_samples", {"control/same": scalar(1)})
    return Message("list_samples", {"control/digests": _to_tensor(digests)})


@client_verb
def send_activations(split: SplitSettings, client: Client, message: Message) -> Message:
    """Run the first blocks on some samples, and answer with what comes out and what stands beside."""
    positions = message.tensor("control/positions", torch.int32, (None,)).tolist()
    if not positions or not all(0 <= p < len(client.examples) for p in positions):
        raise MessageError(f"{message.verb}: positions outside 0 … {len(client.examples) - 1}")
    parts = split.parts_of(client)
    check_fixed(parts)
    if split.local_rounds and "blocks" not in client.store:
        raise MessageError(f"{message.verb}: the trained blocks have not come")
    parts.head.mount(client.model.state({**client.initial, **client.store.get("blocks", {})}))
    examples = [client.examples[position] for position in positions]
    hidden: dict[int, Tensor] = {}
    places = [replace(example, index=place) for place, example in enumerate(examples)]
    # Order is free here, so nothing is spent on padding.
    for chunk in of_one_length(places, client.training.at_once):
        found = _run(split, client, parts, chunk)
        hidden |= {example.index: row for example, row in zip(chunk, found, strict=True)}
    beside = torch.cat([_beside(split, client, example) for example in examples])
    rows = torch.cat([hidden[place] for place in range(len(examples))])
    return Message(
        "send_activations",
        {
            _ROWS: split.defence.apply(rows, client.secret),
            LENGTHS: torch.tensor([e.num_tokens for e in examples], dtype=torch.int32),
            _LABELS if split.shape == "two_part" else _COUNTS: beside.int(),
        },
    )


def _beside(split: SplitSettings, client: Client, example: Example) -> Tensor:
    """Return what the server needs beside the activations of a sample: its labels, or their number."""
    if split.shape == "two_part":
        return client.task.as_numbers(example.labels.reshape(-1))
    return torch.tensor([client.task.num_targets(example)])


@torch.no_grad()
def _run(split: SplitSettings, client: Client, parts: Parts, chunk: list[Example]) -> list[Tensor]:
    """Return the activations of each example; all are of one length."""
    pad_id = client.model.tokenizer.pad_token_id
    batch = collate(chunk, pad_id, client.model.device, exact=True)
    head = parts.split.head.eval()
    key = ("head upload", batch.layout, client.tier.cut or split.cut)
    run = partial(head, None, input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    return list(
        client.meter.run(key, run, lambda: (*resident_tensors(head), *parts.frozen_at_client()))
    )


def _to_tensor(digests: Sequence[str]) -> Tensor:
    content = bytearray.fromhex("".join(digests))
    return torch.frombuffer(content, dtype=torch.uint8).view(-1, DIGEST)
