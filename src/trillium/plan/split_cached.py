"""Cache-once on paper: activations that cross a single time, and first blocks trained before."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from trillium.federation.client import Client, verbs_of
from trillium.frameworks.split.activation_cache import DIGEST, digest_of
from trillium.frameworks.split.auxiliary import Auxiliary
from trillium.frameworks.split.cached import UPLOAD
from trillium.frameworks.split.protocol import Split
from trillium.models.parts import Parts
from trillium.plan.cohorts import Cohort
from trillium.plan.federation import Chunk, Federation
from trillium.plan.split_batches import Batches
from trillium.plan.waves import FREE, Ask, Wave, Work
from trillium.tasks import Example
from trillium.tasks.batches import of_one_length
from trillium.training.loop import batches
from trillium.training.meters import resident_tensors
from trillium.wire.kinds import Tensors
from trillium.wire.message import Message, named, scalar


@dataclass(frozen=True)
class _Sample:
    """A sample that the server keeps, and how many blocks it has passed."""

    example: Example
    source: int

    @property
    def num_tokens(self) -> int:
        return self.example.num_tokens


@dataclass
class CachedRounds:
    """The rounds of a split whose clients' blocks are fixed, or trained by the clients alone.

    Attributes:
        framework: its settings.
        federation: both sides.
        parts: the cut model.
        batches: what the server's part costs.
    """

    framework: Split
    federation: Federation
    parts: Parts
    batches: Batches
    _held: dict[str, list[_Sample]] = field(default_factory=dict)
    _knowing: set[str] = field(default_factory=set)
    _known: dict[Hashable, Any] = field(default_factory=dict)

    def collect(self, cohort: Cohort) -> Iterator[Wave]:
        """Return the messages that bring what the server lacks."""
        yield Wave(tuple(self._list(name, name in cohort.lost) for name in cohort.asked))
        todo = {n: self._lacking(n) for n in cohort.present if n not in self._held}
        self._knowing.update(cohort.present)
        while any(todo.values()):
            turn = {name: left[:UPLOAD] for name, left in todo.items() if left}
            todo = {name: todo[name][UPLOAD:] for name in turn}
            yield Wave(tuple(self._send(name, examples) for name, examples in turn.items()))

    def _list(self, name: str, lost: bool) -> Ask:
        client, federation = self.federation.clients[name], self.federation
        is_held, informs = name in self._held, self._informs(name)
        count = len(client.examples)
        key = ("list", id(client.tier), len(str(client.round)), is_held, informs, count)
        if key not in self._known:
            tensors = {"control/held": _bytes(1)}
            if informs:
                blocks = {n: client.initial[n] for n in self.parts.head.names}
                tensors |= named("snapshot", blocks)
            reply = {"control/same": scalar(1)} if is_held else {"control/digests": _bytes(count)}
            self._known[key] = (
                federation.down(name, Message("list_samples", tensors)),
                federation.up(name, Message("list_samples", reply)),
            )
        down, up = self._known[key]
        return Ask(name, "list_samples", down, None if lost else up)

    def _informs(self, name: str) -> bool:
        return self.framework.local_rounds > 0 and name not in self._knowing

    def _lacking(self, name: str) -> list[Example]:
        """Return the samples of a client, each of several equal ones once, and note all as held."""
        client = self.federation.clients[name]
        source = client.tier.cut or self.framework.cut
        self._held[name] = [_Sample(example, source) for example in client.examples]
        if self.federation.texts.assumed:  # they only look equal
            return client.examples
        found: dict[str, Example] = {}
        for example in client.examples:
            labels = torch.tensor([client.task.num_targets(example)])
            if self.framework.shape == "two_part":
                labels = example.labels
            found.setdefault(digest_of(example.input_ids, labels), example)
        return list(found.values())

    def _send(self, name: str, examples: list[Example]) -> Ask:
        client, federation = self.federation.clients[name], self.federation
        classifies = client.task.peft_task == "SEQ_CLS"
        tokens = sum(example.num_tokens for example in examples)
        key = ("send", id(client.tier), len(str(client.round)), len(examples), tokens)
        if key not in self._known:
            rows = federation.paper.empty(tokens, self.parts.width, dtype=client.model.dtype)
            reply = {"activations/rows": rows, "control/lengths": _ints(len(examples))}
            if self.framework.shape == "two_part":
                reply["labels/labels"] = _ints(len(examples) if classifies else tokens)
            else:
                reply["control/counts"] = _ints(len(examples))
            positions = {"control/positions": _ints(len(examples))}
            self._known[key] = (
                federation.down(name, Message("send_activations", positions)),
                federation.up(name, Message("send_activations", reply)),
            )
        down, up = self._known[key]
        return Ask(name, "send_activations", down, up, self._upload(client, examples))

    def _upload(self, client: Client, examples: list[Example]) -> Work:
        """Return what the first blocks cost on some samples."""
        places = [replace(example, index=place) for place, example in enumerate(examples)]
        if self.federation.texts.assumed:
            places = examples
        lists = of_one_length(places, client.training.batch_size)
        chunks = self.federation.chunked(lists, "uploads", exact=True)
        plain = self.framework.model_copy(update={"local_rounds": 0})

        def run(chunk: list[Example]) -> None:
            alone = replace(client, examples=chunk)
            positions = {"control/positions": torch.arange(len(chunk), dtype=torch.int32)}
            verbs_of(plain)["send_activations"](alone, Message("send_activations", positions))

        return self.federation.summed(
            chunks, ("upload", id(client.model), client.tier.cut or self.framework.cut), run
        )

    def train(self) -> Work:
        """Return what the server computes in a round on all samples that it holds."""
        federation, server = self.federation, self.federation.server
        pool = [sample for name in sorted(self._held) for sample in self._held[name]]
        if not federation.counts or not pool:
            return FREE
        if federation.texts.assumed and len(pool) in self._known:
            known: Work = self._known[len(pool)]
            return known
        total: dict[Hashable, tuple[int, Work]] = {}
        for chunk in batches(pool, server.training, server.generator("batches")):
            [found] = federation.chunked([[sample.example for sample in chunk]], "pool")
            for cost in (*self.batches.body([found], gradient=False), *self._middle(chunk)):
                total[id(cost)] = total.get(id(cost), (0, cost))[0] + 1, cost
        flops = sum(count * cost.flops for count, cost in total.values())
        work = Work(flops, tuple(peak for _, cost in total.values() for peak in cost.peaks))
        self._known[len(pool)] = work
        return work

    def _middle(self, chunk: list[_Sample]) -> Iterator[Work]:
        """Return what the blocks cost that clients with fewer of them lack."""
        for source in sorted({sample.source for sample in chunk} - {self.framework.cut}):
            own = [sample.example for sample in chunk if sample.source == source]
            [found] = self.federation.chunked([own], "pool")
            yield self.middle(source, found)

    def middle(self, source: int, chunk: Chunk) -> Work:
        """Return what the blocks between a client's cut and the server's cost on a batch."""
        if source == self.framework.cut or not self.federation.counts:
            return FREE
        run = partial(self._run_middle, source, chunk)
        key = ("middle", id(self.federation.model), source, self.framework.cut, chunk.layout)
        return self.federation.measure(key, run)

    def _run_middle(self, source: int, chunk: Chunk) -> None:
        server, (rows, length, is_padded) = self.federation.server, chunk.layout
        parts = server.model.parts(source, self.framework.cut, server.test)
        parts.body.mount(server.state)
        body = parts.split.body.eval()
        mask = torch.ones(rows, length, dtype=torch.int64)
        mask[0, length - 1] = 0 if is_padded else 1
        hidden = self.federation.paper.empty(
            rows, length, self.parts.width, dtype=server.model.dtype
        )
        key = ("middle", source, chunk.layout)
        with server.meter.measure(key, lambda: resident_tensors(body)), torch.no_grad():
            body(hidden, attention_mask=mask)

    # Rounds of the clients alone

    def blocks(self, client: Client) -> Tensors:
        """Return what trains in rounds of the clients alone, by name."""
        small = Auxiliary(self.parts, client.task).initial()
        start = {**client.initial, **small}
        return {name: start[name] for name in sorted({*self.parts.head.names, *small})}

    def train_blocks(self, cohort: Cohort) -> Wave:
        """Return the messages of such a round."""
        return Wave(tuple(self._blocks(name, name in cohort.lost) for name in cohort.asked))

    def _blocks_key(self, client: Client) -> Hashable:
        return (self.federation.training_key(client, self.blocks(client)), self.framework.cut)

    def _blocks(self, name: str, lost: bool) -> Ask:
        client, federation = self.federation.clients[name], self.federation
        key = ("blocks", id(client.tier), len(str(client.round)))
        part = named("parameters", self.blocks(client))
        if key not in self._known:
            control = {"control/weight": scalar(0.0), "control/loss": scalar(0.0)}
            self._known[key] = (
                federation.down(name, Message("train_blocks", part)),
                federation.up(name, Message("train_blocks", {**part, **control})),
            )
        down, up = self._known[key]
        if lost:
            return Ask(name, "train_blocks", down, None)

        def run(chunk: list[Example]) -> None:
            training = client.training.model_copy(update={"local_steps": 1})
            alone = replace(client, examples=chunk, training=training)
            verbs_of(self.framework)["train_blocks"](alone, Message("train_blocks", part))

        cost = federation.summed(federation.chunks(client), self._blocks_key(client), run)
        return Ask(name, "train_blocks", down, up, cost)


def _ints(size: int) -> Tensor:
    return torch.zeros(size, dtype=torch.int32)


def _bytes(rows: int) -> Tensor:
    return torch.zeros(rows, DIGEST, dtype=torch.uint8)
