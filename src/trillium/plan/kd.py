"""KD-FedLLM on paper: what its messages weigh, and what training, predicting and distilling cost."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from trillium.client import Client
from trillium.frameworks.kd import KD
from trillium.frameworks.kd_cache import LabelCache
from trillium.frameworks.kd_teacher import predictions
from trillium.message import Message, scalar
from trillium.plan.fakes import DEPENDS_ON_VALUES
from trillium.plan.federation import Cohort, Federation
from trillium.plan.sizes import Weight
from trillium.plan.waves import FREE, Ask, Memory, Wave
from trillium.side import Side
from trillium.soft_labels import SoftLabels
from trillium.tasks import Example
from trillium.tasks.batches import in_order
from trillium.tasks.public import choice, encode_public, row_slices, write_mask
from trillium.training.distillation import (
    PREDICT_BATCH,
    Loss,
    distillation,
    is_wide,
    predict,
)
from trillium.training.loop import batches, task_objective
from trillium.training.meters import Cost
from trillium.wire import Wire


@dataclass
class KDRounds:
    """The rounds of KD-FedLLM.

    What filters and the server's `max_entropy` leave out depends on values: nothing is left out here,
    so bytes and FLOPs are the most that a run can take.

    Attributes:
        framework: its settings.
        federation: both sides.
    """

    framework: KD
    federation: Federation
    _informed: set[str] = field(default_factory=set)
    _labels: dict[str, Any] = field(default_factory=dict)
    _known: dict[Hashable, Any] = field(default_factory=dict)

    @property
    def upper_bound(self) -> bool:
        """Whether a run may take less than is planned."""
        return self.framework.filter.name != "none" or self.framework.max_entropy is not None

    def start(self) -> Iterator[Wave]:
        """Return the public set, which goes to everybody once."""
        yield self._inform(self.federation.everyone())

    def round(self, number: int, cohort: Cohort) -> Iterator[Wave]:
        """Return the messages of a round."""
        framework, server = self.framework, self.federation.server
        late = self._inform(cohort)
        if late.asks:
            yield late
        public, chosen = self._public, framework.chosen(server)
        cache = LabelCache(
            self._labels if framework.cache_rounds > 1 else {}, framework.cache_rounds
        )
        wanted = [index for index in chosen if not cache.is_fresh(index, number)]
        examples = [public[index] for index in wanted]
        yield Wave(tuple(self._teach(name, examples, name in cohort.lost) for name in cohort.asked))
        records = torch.zeros(predictions(server, examples)[0], 0)
        codec = self.federation.config.wire.row_codec("down")
        slices = row_slices(server.task, public)
        cache.keep(number, wanted, SoftLabels(codec, records, 0), slices)
        for name in cohort.lost:
            cache.lose(name)
        used = [index for index in chosen if cache.is_fresh(index, number)]
        if not used:
            return
        distilling = Cost() if framework.direction == "client" else self._distil(server, used)
        if framework.direction == "server":
            yield Wave((), distilling)
            return
        asks = []
        for name in cohort.present:
            sent = cache.lacking(name, used)
            asks.append(self._learn(name, used, sent))
            if framework.cache_rounds > 1:
                cache.confirm(name, sent)
        yield Wave(tuple(asks), distilling)

    def memory(self, client: Client, peak_bytes: int) -> Memory:
        """Divide the most that a client holds into its parts."""
        state = client.model.state()
        return self.federation.memory(client, peak_bytes, state, client.training.optimizer)

    @property
    def _public(self) -> list[Example]:
        if "public" not in self._known:
            self._known["public"] = self.framework.public_set(self.federation.server)
        found: list[Example] = self._known["public"]
        return found

    def _inform(self, cohort: Cohort) -> Wave:
        late = [name for name in cohort.asked if name not in self._informed]
        if not late:
            return Wave(())
        message = encode_public(self._public)
        asks = []
        for name in late:
            down = self.federation.down(name, message)
            reply = self.federation.up(name, Message("receive_public"))
            asks.append(Ask(name, "receive_public", down, reply, purpose="once"))
            self._informed.add(name)
        return Wave(tuple(asks))

    def _teach(self, name: str, examples: list[Example], lost: bool) -> Ask:
        client = self.federation.clients[name]
        key = ("teach", client.round, id(client.tier))
        if key not in self._known:
            self._known[key] = self._weigh_teach(client, examples)
        down, up = self._known[key]
        if lost:
            return Ask(name, "teach", down, None)
        cost = self._train(client) + self._predict(client, examples)
        return Ask(name, "teach", down, up, cost)

    def _weigh_teach(self, client: Client, examples: list[Example]) -> tuple[Weight, Weight]:
        framework, public = self.framework, self._public
        indices = [example.index for example in examples]
        down = Message("teach", choice("control/wanted", indices, len(public)))
        tensors = {"control/weight": scalar(0.0), "control/loss": scalar(0.0)}
        if framework.filter.name != "none":
            tensors["control/kept"] = write_mask(list(range(len(examples))), len(examples))
        if framework.ensemble.needs_counts:
            tensors["control/counts"] = torch.zeros(client.model.num_classes, dtype=torch.float64)
        rows = {"logits/public": predictions(client, examples)}
        return (
            self.federation.down(client.name, down),
            self.federation.up(client.name, Message("teach", tensors), rows),
        )

    def _learn(self, name: str, used: list[int], sent: list[int]) -> Ask:
        client = self.federation.clients[name]
        key = ("learn", client.round, id(client.tier), tuple(sent))
        if key not in self._known:
            count = len(self._public)
            tensors = choice("control/used", used, count)
            if sent != used:
                tensors["control/sent"] = write_mask(sent, count)
            rows = predictions(client, [self._public[index] for index in sent])
            down = self.federation.down(name, Message("learn", tensors), {"logits/teacher": rows})
            self._known[key] = down, self.federation.up(name, Message("learn"))
        down, up = self._known[key]
        return Ask(name, "learn", down, up, self._distil(client, used))

    # Work

    def _train(self, client: Client) -> Cost:
        def run(chunk: list[Example]) -> None:
            client.loop("train", client.model.state()).fit(
                [chunk],
                task_objective(client.task, client.examples),
                client.training,
                client.progress,
                1,
            )

        chunks = self.federation.chunks(client)
        key = ("train", id(chunks))
        if key not in self._known:
            self._known[key] = self.federation.summed(chunks, "train", run)
        found: Cost = self._known[key]
        return found

    def _predict(self, client: Client, examples: list[Example]) -> Cost:
        if not self.federation.counts:
            return FREE
        codec = repr(client.wire.row_codec("up"))
        key = ("predict", codec, tuple(example.index for example in examples))
        if key not in self._known:
            chunks = self.federation.chunked(in_order(examples, PREDICT_BATCH), "public")
            state = client.model.state()
            with self.federation.paper.running():
                loop = client.loop("predict", state)
                wide = is_wide(loop, client.task, client.model.num_classes)

            def run(chunk: list[Example]) -> None:
                wire = client.wire
                try:
                    self._predict_one(client, chunk, wire)
                except DEPENDS_ON_VALUES:  # the codec looks at values; the floats weigh more anyway
                    self._predict_one(client, chunk, Wire())

            self._known[key] = self.federation.summed(
                chunks, ("predict", codec), run, by_count=wide
            )
        found: Cost = self._known[key]
        return found

    def _predict_one(self, client: Client, chunk: list[Example], wire: Wire) -> None:
        shape = predictions(client, chunk)
        writer = wire.writer("teach", "logits/public", client.round, shape, "up")
        with self.federation.paper.running():
            predict(client.loop("predict", client.model.state()), client.task, chunk, writer)

    def _distil(self, side: Side, used: Sequence[int]) -> Cost:
        """Return what distilling costs a side; the first round's batches stand for those of all."""
        if not self.federation.counts:
            return FREE
        framework, wire = self.framework, self.federation.config.wire
        if isinstance(side, Client):
            wire = side.wire
        name = side.name if self._varies else ""
        codec = repr(wire.row_codec("down"))
        key = ("distil", codec, name, tuple(used))
        if key in self._known:
            found: Cost = self._known[key]
            return found
        public = [self._public[index] for index in used]
        training = side.training.model_copy(
            update={"local_epochs": framework.distill_epochs, "local_steps": None}
        )
        loss = Loss(framework.temperature, framework.weight, framework.public_labels)
        shape = predictions(side, public)
        with self.federation.paper.running():
            wide = is_wide(side.loop("distil", side.model.state()), side.task, shape[1])

        def run(chunk: list[Example]) -> None:
            for codec_wire in (wire, Wire()):
                teacher = self._teacher(codec_wire, shape)
                state = side.model.state()
                loop, objective = distillation(
                    side.loop("distil", state), side.task, public, teacher, loss
                )
                try:
                    loop.fit([chunk], objective, training, side.progress, 1)
                except DEPENDS_ON_VALUES:
                    continue
                return

        chunks = self.federation.chunked(
            batches(public, training, side.generator("distil")), "public"
        )
        cost = self.federation.summed(chunks, ("distil", codec), run, by_count=wide)
        self._known[key] = cost
        return cost

    @property
    def _varies(self) -> bool:
        """Whether the layouts of batches of the public set depend on their order."""
        if "varies" not in self._known:
            lengths = {len(example.input_ids) for example in self._public}
            self._known["varies"] = len(lengths) > 1
        return bool(self._known["varies"])

    def _teacher(self, wire: Wire, shape: tuple[int, int]) -> SoftLabels:
        """Return a teacher without values."""
        codec = wire.row_codec("down")
        one = codec.sized(*shape).encode_rows(torch.zeros(1, shape[1]).log_softmax(-1), 0)
        records = self.federation.paper.empty(shape[0], *one.shape[1:], dtype=one.dtype)
        return SoftLabels(codec, records, shape[1])
