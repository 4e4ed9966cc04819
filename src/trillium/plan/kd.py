"""KD-FedLLM on paper: what its messages weigh, and what training, predicting and distilling cost."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from trillium.errors import UserError
from trillium.federation.client import Client
from trillium.federation.side import Side
from trillium.frameworks.kd.cache import LabelCache
from trillium.frameworks.kd.distillation import (
    PREDICT_BATCH,
    Loss,
    distillation,
    is_wide,
    predict,
)
from trillium.frameworks.kd.protocol import KD
from trillium.frameworks.kd.public import choice, examples_at, row_slices, write_mask
from trillium.plan.cohorts import Cohort
from trillium.plan.fakes import DEPENDS_ON_VALUES
from trillium.plan.federation import Federation
from trillium.plan.sizes import Weight
from trillium.plan.waves import FREE, Ask, Memory, Wave, Work
from trillium.plan.written import writing
from trillium.tasks import Example
from trillium.tasks.batches import in_order
from trillium.training.loop import batches, task_objective
from trillium.wire.message import Message, scalar
from trillium.wire.soft_labels import SoftLabels, Teacher
from trillium.wire.wire import Wire


@dataclass
class KDRounds:
    """The rounds of KD-FedLLM.

    Attributes:
        framework: its settings.
        federation: both sides.
    """

    framework: KD
    federation: Federation
    _informed: set[str] = field(default_factory=set)
    _labels: dict[str, Any] = field(default_factory=dict)
    _known: dict[Hashable, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        texts = self.federation.texts
        if texts.foreign:
            raise UserError(
                f"a plan with {', '.join(sorted(texts.foreign)[:3])} of another vocabulary",
                "how many predictions can be translated depends on the texts",
                "Write one model, or models with one tokenizer, to see what they cost",
            )

    @property
    def upper_bound(self) -> bool:
        """Whether a run may take less than is planned."""
        return False

    def start(self) -> Iterator[Wave]:
        """Return the public set, which goes to everybody once, and what it costs to write it."""
        if self.federation.texts.assumed:  # else it is known from the run
            yield Wave((), writing(self.federation))
        yield self._inform(self.federation.everyone())

    def round(self, number: int, cohort: Cohort) -> Iterator[Wave]:
        """Return the messages of a round."""
        framework, server = self.framework, self.federation.server
        late = self._inform(cohort)
        if late.asks:
            yield late
        public, chosen = self._public, framework.chosen(server)
        cache = LabelCache(self._labels, framework.cache_rounds)
        wanted = [index for index in chosen if not cache.is_fresh(index, number)]
        examples = [public[index] for index in wanted]
        yield Wave(tuple(self._teach(name, examples, name in cohort.lost) for name in cohort.asked))
        used, caches = chosen, framework.cache_rounds > 1
        if caches:
            records = torch.zeros(self.federation.predictions(server, examples)[0], 0)
            codec = self.federation.config.wire.row_codec("down")
            teacher = Teacher.of_all(SoftLabels(codec, records, 0))
            cache.keep(number, wanted, teacher, row_slices(server.task, examples))
            for name in cohort.lost:
                cache.lose(name)
            used = [index for index in chosen if cache.is_fresh(index, number)]
        if not used:
            return
        distilling = Work() if framework.direction == "client" else self._distil(server, used)
        if framework.direction == "server":
            yield Wave((), distilling)
            return
        asks = []
        for name in cohort.present:
            sent = cache.lacking(name, used) if caches else used
            asks.append(self._learn(name, used, sent))
            if caches:
                cache.confirm(name, sent)
        yield Wave(tuple(asks), distilling)

    def memory(self, client: Client, peak_bytes: int) -> Memory:
        """Divide the most that a client holds into its parts."""
        state = self.federation.models.state(client.model)
        return self.federation.memory(client, peak_bytes, state, client.training.optimizer)

    @property
    def _public(self) -> list[Example]:
        if "public" not in self._known:
            self._known["public"] = self.framework.public_set(self.federation.server)
        found: list[Example] = self._known["public"]
        return found

    def _public_at(self, side: Side, indices: Sequence[int]) -> list[Example]:
        """Return public examples in the tokens of a side."""
        return examples_at(self._own_public(side), indices)

    def _own_public(self, side: Side) -> list[Example]:
        """Return the public set in the tokens of a side."""
        own = self.federation.texts.public_of.get(side.name)
        if own is None or own is self.federation.texts.public:
            return self._public
        key = ("own public", id(own))
        if key not in self._known:
            pairs = zip(own, self._public, strict=True)
            self._known[key] = [
                replace(mine, labels=other.labels) if not other.labels.dim() else mine
                for mine, other in pairs
            ]
        found: list[Example] = self._known[key]
        return found

    def _inform(self, cohort: Cohort) -> Wave:
        late = [name for name in cohort.asked if name not in self._informed]
        if not late:
            return Wave(())
        labelled = self.framework.public_labels
        message = self.federation.texts.public_message(labelled=labelled)
        asks = []
        for name in late:
            key = ("public", id(self.federation.clients[name].tier), self.federation.server.round)
            if key not in self._known:
                self._known[key] = (
                    self.federation.down(name, message),
                    self.federation.up(name, Message("receive_public")),
                )
            down, reply = self._known[key]
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
        seen = ("seen", client.round, id(client.tier), id(client.model), id(client.examples))
        if seen not in self._known:
            own = self._public_at(client, [example.index for example in examples])
            self._known[seen] = self._predict(client, own)
        return Ask(name, "teach", down, up, self._train(client) + self._known[seen])

    def _weigh_teach(self, client: Client, examples: list[Example]) -> tuple[Weight, Weight]:
        framework, public = self.framework, self._public
        indices = [example.index for example in examples]
        down = Message("teach", choice("control/wanted", indices, len(public)))
        tensors = {"control/weight": scalar(0.0), "control/loss": scalar(0.0)}
        if framework.ensemble.needs_counts:
            tensors["control/counts"] = torch.zeros(client.model.num_classes, dtype=torch.float64)
        shape = self.federation.predictions(client, examples)
        return (
            self.federation.down(client.name, down),
            self.federation.up(client.name, Message("teach", tensors), {"logits/public": shape}),
        )

    def _learn(self, name: str, used: list[int], sent: list[int]) -> Ask:
        client = self.federation.clients[name]
        key = ("learn", client.round, id(client.tier), tuple(sent))
        if key not in self._known:
            count = len(self._public)
            tensors = choice("control/used", used, count)
            if sent != used:
                tensors["control/sent"] = write_mask(sent, count)
            shape = self.federation.predictions(client, examples_at(self._public, sent))
            down = self.federation.down(name, Message("learn", tensors), {"logits/teacher": shape})
            self._known[key] = down, self.federation.up(name, Message("learn"))
        down, up = self._known[key]
        return Ask(name, "learn", down, up, self._distil(client, used))

    # Work

    def _train(self, client: Client) -> Work:
        def run(chunk: list[Example]) -> None:
            client.loop("train", client.model.state()).fit(
                [chunk],
                task_objective(client.task, client.examples),
                client.training,
                client.progress,
                1,
            )

        chunks = self.federation.chunks(client)
        key = ("train", id(client.model), id(chunks))
        if key not in self._known:
            self._known[key] = self.federation.summed(
                chunks, self.federation.training_key(client, client.model.initial), run
            )
        found: Work = self._known[key]
        return found

    def _predict(self, client: Client, examples: list[Example]) -> Work:
        if not self.federation.counts:
            return FREE
        model = id(client.model)
        codec = repr(client.wire.row_codec("up"))
        key = ("predict", model, codec, tuple(example.index for example in examples))
        if key not in self._known:
            chunks = self.federation.chunked(in_order(examples, PREDICT_BATCH), "public")
            with self.federation.paper.running():
                loop = client.loop("predict", client.model.state())
                wide = is_wide(loop, client.task, client.model.num_classes)

            def run(chunk: list[Example]) -> None:
                try:
                    self._predict_one(client, chunk, client.wire)
                except DEPENDS_ON_VALUES:  # the codec looks at values; the floats weigh more anyway
                    self._predict_one(client, chunk, Wire())

            self._known[key] = self.federation.summed(
                chunks,
                ("predict", model, codec),
                run,
                by_count=wide,
            )
        found: Work = self._known[key]
        return found

    def _predict_one(self, client: Client, chunk: list[Example], wire: Wire) -> None:
        shape = self.federation.predictions(client, chunk)
        writer = wire.writer("teach", "logits/public", client.round, shape, "up")
        loop = client.loop("predict", client.model.state())
        with self.federation.paper.running():
            predict(loop, client.task, chunk, writer)

    def _distil(self, side: Side, used: Sequence[int]) -> Work:
        """Return what distilling costs a side; the first round's batches stand for those of all."""
        if not self.federation.counts:
            return FREE
        framework, model = self.framework, id(side.model)
        wire = side.wire if isinstance(side, Client) else self.federation.config.wire
        name = side.name if self._varies else ""
        codec = repr(wire.row_codec("down"))
        key = ("distil", model, codec, name, tuple(used))
        if key in self._known:
            found: Work = self._known[key]
            return found
        public = self._public_at(side, used)
        training = side.training.model_copy(
            update={"local_epochs": framework.distill_epochs, "local_steps": None}
        )
        loss = Loss(framework.temperature, framework.weight, framework.public_labels)
        shape = self.federation.predictions(side, public)
        with self.federation.paper.running():
            wide = is_wide(side.loop("distil", side.model.state()), side.task, shape[1])

        def run(chunk: list[Example]) -> None:
            for codec_wire in (wire, Wire()):
                teacher = self._teacher(codec_wire, side, shape)
                loop, objective = distillation(
                    side.loop("distil", side.model.state()),
                    side.task,
                    public,
                    teacher,
                    loss,
                )
                try:
                    loop.fit([chunk], objective, training, side.progress, 1)
                except DEPENDS_ON_VALUES:
                    continue
                return

        chunks = self.federation.chunked(
            batches(public, training, side.generator("distil")), "public"
        )
        distil_key = ("distil", model, codec, repr((framework, training.optimizer)))
        cost = self.federation.summed(chunks, distil_key, run, by_count=wide)
        self._known[key] = cost
        return cost

    @property
    def _varies(self) -> bool:
        """Whether the layouts of batches of the public set depend on their order."""
        if "varies" not in self._known:
            lengths = {len(example.input_ids) for example in self._public}
            self._known["varies"] = len(lengths) > 1
        return bool(self._known["varies"])

    def _teacher(self, wire: Wire, side: Side, shape: tuple[int, int]) -> Teacher:
        """Return a teacher without values."""
        codec = wire.row_codec("down")
        one = codec.sized(*shape).encode_rows(torch.zeros(1, shape[1]).log_softmax(-1), 0)
        records = self.federation.paper.empty(shape[0], *one.shape[1:], dtype=one.dtype)
        labels = SoftLabels(codec, records, shape[1])
        return Teacher(labels, torch.ones(shape[0], dtype=torch.bool))
