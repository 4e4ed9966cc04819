"""A federation on paper: the real server and clients of a run around a model without weights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from trillium.config.experiment import ExperimentConfig
from trillium.federation.client import Client
from trillium.federation.fleet import Fleet
from trillium.federation.server import Server
from trillium.federation.side import Side
from trillium.federation.tiers import tier_of
from trillium.models.load import LanguageModel
from trillium.models.slots import State
from trillium.plan.cohorts import Cohort, Nobody
from trillium.plan.data import Texts
from trillium.plan.fakes import Paper
from trillium.plan.memory import divided, unique_bytes
from trillium.plan.models import Models
from trillium.plan.phases import PhaseMeter
from trillium.plan.sizes import NOTHING, Scales, Weight
from trillium.plan.waves import FREE, Memory, Work
from trillium.tasks import Example
from trillium.tasks.batches import padded
from trillium.training.loop import batches
from trillium.training.meters import resident_tensors
from trillium.training.optimizers import Optimizer
from trillium.wire.ledger import Ledger
from trillium.wire.message import Message

EXACT = 50_000  # batches in all rounds; above, every round is planned with the batches of the first
Layout = tuple[int, int, bool]


@dataclass(frozen=True)
class Chunk:
    """The examples of one batch, and what is to be known of them.

    Attributes:
        examples: of the batch.
        layout: as `Batch.layout`.
        count: predictions that count.
    """

    examples: list[Example]
    layout: Layout
    count: int

    @property
    def num_tokens(self) -> int:
        """Without padding."""
        return sum(example.num_tokens for example in self.examples)


@dataclass
class Federation:
    """Both sides of a run on paper.

    Attributes:
        config: of the run.
        texts: who has which data.
        num_blocks: how many blocks the model has here; as the architecture says where left out.
        models: makes the model.
        counts, weighs: whether work is counted, and messages are weighed; else they are nothing.
    """

    config: ExperimentConfig
    texts: Texts
    num_blocks: int | None = None
    counts: bool = True
    weighs: bool = True
    models: Models = field(default_factory=Models)
    _chunks: dict[Hashable, list[Chunk]] = field(default_factory=dict)
    _same: dict[Hashable, Chunk] = field(default_factory=dict)
    _targets: dict[int, int] = field(default_factory=dict)

    @cached_property
    def model(self) -> LanguageModel:
        """The server's model."""
        return self.model_of(None)

    def model_of(self, client: str | None) -> LanguageModel:
        """Return the model of a client, or of the server for `None`."""
        if client is not None and not self.config.has_other_models:
            return self.model
        config = self.config.of(client) if self.config.has_other_models else self.config
        return self.models.get(config, self.texts.num_classes, self.num_blocks)

    @property
    def paper(self) -> Paper:
        """Makes tensors without values."""
        return self.models.paper

    @cached_property
    def meter(self) -> PhaseMeter:
        """Counts what is run on paper."""
        return PhaseMeter(self.paper)

    @cached_property
    def server(self) -> Server:
        """The server."""
        pools = self.config.framework.name == "centralised"
        return Server(
            **self._side("server", self.model),
            training=self.config.training,
            state=self.models.state(self.model),
            public=self.texts.public,
            public_rows=self.texts.rows,
            pooled=[e for own in self.texts.clients.values() for e in own] if pools else [],
            tiers={name: tier_of(self.config.tiers, name) for name in self.texts.clients},
            groups=self.config.groups(sorted(self.texts.clients)),
        )

    @cached_property
    def clients(self) -> dict[str, Client]:
        """The clients by name."""
        found = {}
        tiers = {id(tier): tier for tier in self.server.tiers.values()}
        training = {key: tier.training(self.config.training) for key, tier in tiers.items()}
        for name, examples in self.texts.clients.items():
            tier = self.server.tiers[name]
            found[name] = Client(
                **self._side(name, self.model_of(name)),
                training=training[id(tier)],
                examples=examples,
                verbs={},
                wire=self._wires[id(tier)],
                tier=tier,
            )
        return found

    @cached_property
    def scales(self) -> Scales:
        """Weighs messages."""
        return Scales(self.paper, len(self.model.tokenizer))

    @cached_property
    def _wires(self) -> dict[int, Any]:
        tiers = {id(tier): tier for tier in self.server.tiers.values()}
        return {key: tier.wire(self.config.wire) for key, tier in tiers.items()}

    @cached_property
    def fleet(self) -> Fleet:
        """The clients as the server sees them; it asks nobody."""
        engine = Nobody(list(self.texts.clients))
        return Fleet(engine, self.config.wire, Ledger(), self.config.fleet, self.config.seed)

    def _side(self, name: str, model: LanguageModel) -> dict[str, Any]:
        return {
            "name": name,
            "model": model,
            "task": self.config.task,
            "test": [],
            "meter": self.meter,
            "seed": self.config.seed,
            "num_rounds": self.config.rounds,
        }

    def begin(self, number: int) -> Cohort:
        """Set both sides to a round and return its cohort, which the seed of the run draws."""
        self.fleet.begin_round(number)
        asked = tuple(self.fleet.asked)
        self.server.round = number
        for client in self.clients.values():
            client.round = number
        return Cohort(asked, frozenset(name for name in asked if self.fleet.fails(name)))

    def everyone(self) -> Cohort:
        """Return the cohort before the first round."""
        return Cohort(tuple(sorted(self.clients)), frozenset())

    # Messages

    def down(
        self, client: str, message: Message, rows: Mapping[str, tuple[int, int]] | None = None
    ) -> Weight:
        """Return what a message to a client weighs."""
        if not self.weighs:
            return NOTHING
        message = Message(
            message.verb, message.tensors, {**message.meta, "round": self.server.round}
        )
        return self.scales.weigh(self.clients[client].wire, "down", message, rows)

    def up(
        self, client: str, message: Message, rows: Mapping[str, tuple[int, int]] | None = None
    ) -> Weight:
        """Return what the reply of a client weighs, with the figures that every reply carries."""
        if not self.weighs:
            return NOTHING
        tensors: dict[str, Tensor] = dict(message.tensors)
        tensors["control/cost"] = torch.zeros(4, dtype=torch.float64)
        message = Message(message.verb, tensors, {**message.meta, "round": self.server.round})
        return self.scales.weigh(self.clients[client].wire, "up", message, rows)

    # Work

    def measure(self, key: Hashable, work: Callable[[], object]) -> Work:
        """Return what some work costs; it runs on paper the first time its key is seen."""
        if not self.counts:
            return FREE
        costs = self.models.costs
        if key not in costs:
            self.meter.reset()
            with self.paper.running():
                work()
            costs[key] = self.meter.work()
        return costs[key]

    def training_key(self, client: Client, trained: Iterable[str]) -> Hashable:
        """Return on what the cost of plain training depends beside the batch.

        Args:
            client: who trains.
            trained: names of the parameters that do.
        """
        training = client.training
        return (
            "train",
            id(client.model),
            tuple(sorted(trained)),
            repr((training.optimizer, training.max_grad_norm)),
        )

    def summed(
        self,
        chunks: Sequence[Chunk],
        key: Hashable,
        run: Callable[[list[Example]], object],
        by_count: bool = False,
    ) -> Work:
        """Return what batches cost, each layout run once.

        Assumed examples are alike: FLOPs grow with their number, and the largest batch alone is run.

        Args:
            chunks: the batches.
            key: what the costs depend on beside the layout of a batch, the model among it.
            run: runs one batch.
            by_count: whether they also depend on how many predictions count.
        """
        if not self.counts or not chunks:
            return FREE
        if self.texts.assumed:
            largest = max(chunks, key=lambda chunk: len(chunk.examples))
            cost = self.measure(
                (key, largest.layout, largest.count), partial(run, largest.examples)
            )
            share = sum(len(chunk.examples) for chunk in chunks) / len(largest.examples)
            return Work(share * cost.flops, cost.peaks)
        kinds: dict[Hashable, list[Chunk]] = defaultdict(list)
        for chunk in chunks:
            kinds[chunk.layout, chunk.count if by_count else None].append(chunk)
        flops = 0.0
        peaks: list[int] = []
        for kind, alike in kinds.items():
            cost = self.measure((key, kind), partial(run, alike[0].examples))
            flops += len(alike) * cost.flops
            peaks += cost.peaks
        return Work(flops, tuple(peaks))

    def chunked(
        self, lists: Iterable[list[Example]], of: str, *, exact: bool = False
    ) -> list[Chunk]:
        """Return batches with what is to be known of them; equal ones are one object.

        Args:
            lists: the examples of each batch.
            of: whose they are, the `clients` or of the `public` set.
            exact: whether they are padded to the longest only, and not to a multiple of eight.
        """
        found = []
        for examples in lists:
            lengths = [len(example.input_ids) for example in examples]
            count = sum(map(self._num_targets, examples))
            length = max(lengths) if exact else padded(max(lengths))
            form = (len(examples), length, min(lengths) < length)
            key = (of, form, count, tuple(lengths) if self.texts.assumed else id(examples))
            found.append(self._same.setdefault(key, Chunk(examples, form, count)))
        return found

    def chunks(self, client: Client) -> list[Chunk]:
        """Return the batches on which a client trains in the current round."""
        number = client.round if self._exact else 1
        if self.texts.assumed:  # all examples are alike, and so are all rounds
            key: Hashable = (id(client.examples), client.training.local_steps)
        else:
            key = (client.name, number)
        if key not in self._chunks:
            now, client.round = client.round, number
            draw = client.generator("batches")
            client.round = now
            self._chunks[key] = self.chunked(
                batches(client.examples, client.training, draw), "clients"
            )
        return self._chunks[key]

    @cached_property
    def _exact(self) -> bool:
        steps = sum(c.training.num_steps(len(c.examples)) for c in self.clients.values())
        return steps * self.config.rounds <= EXACT

    def predictions(self, side: Side, examples: Sequence[Example]) -> tuple[int, int]:
        """Return how many rows the predictions of examples have, and how many classes."""
        return sum(map(self._num_targets, examples)), side.model.num_classes

    def _num_targets(self, example: Example) -> int:
        key = id(example.labels)
        if key not in self._targets:
            self._targets[key] = self.config.task.num_targets(example)
        return self._targets[key]

    def memory(
        self,
        side: Side,
        peak_bytes: int,
        state: State,
        optimizer: Optimizer,
        trained: Collection[str] | None = None,
    ) -> Memory:
        """Divide a peak into its parts.

        Args:
            side: who trains.
            peak_bytes: the most bytes at once.
            state: what is mounted into the model.
            optimizer: over those of its parameters that train.
            trained: their names; all of `state` where left out.
        """
        module = side.model.mount(state)
        return divided(
            peak_bytes,
            unique_bytes(resident_tensors(module)),
            [p for name, p in state.items() if trained is None or name in trained],
            optimizer,
            self.paper,
        )
