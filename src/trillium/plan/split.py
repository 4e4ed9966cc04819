"""Split-FedLLM on paper: what crosses at the cut, batch by batch, and what each part costs."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from trillium.federation.client import Client
from trillium.frameworks.split.body import Step
from trillium.frameworks.split.protocol import Split
from trillium.frameworks.split.turns import shuffled, turns
from trillium.models.parts import Parts
from trillium.plan.cohorts import Cohort
from trillium.plan.cut import cut_model
from trillium.plan.federation import Chunk, Federation
from trillium.plan.memory import divided, unique_bytes
from trillium.plan.sizes import Weight
from trillium.plan.split_ahead import Ahead
from trillium.plan.split_batches import Batches
from trillium.plan.split_cached import CachedRounds
from trillium.plan.split_kept import Kept
from trillium.plan.waves import Ask, Memory, Wave, Work
from trillium.training.meters import resident_tensors
from trillium.wire.kinds import Tensors
from trillium.wire.message import Message, named, scalar

Pair = tuple[Weight, Weight]


@dataclass
class SplitRounds:
    """The rounds of Split-FedLLM; the real verbs of its clients run on paper.

    Attributes:
        framework: its settings.
        federation: both sides.
    """

    framework: Split
    federation: Federation
    _known: dict[Hashable, Any] = field(default_factory=dict)
    _batches: Batches = field(init=False)
    _cached: CachedRounds = field(init=False)
    _parts: Parts = field(init=False)

    def __post_init__(self) -> None:
        framework, federation = self.framework, self.federation
        model, tail = federation.model, framework.tail
        if framework.shape == "u" and tail is None:
            tail = model.num_blocks
        with federation.paper.running():
            self._parts = cut_model(federation, framework.cut, tail)
            for cut in {tier.cut for tier in federation.config.tiers.values()} - {None}:
                assert cut is not None
                cut_model(federation, cut, tail)
                if cut < framework.cut:
                    cut_model(federation, cut, framework.cut)
        framework.start(federation.server, federation.fleet)  # refuses what cannot be
        self._batches = Batches(framework, federation, self._parts)
        self._cached = CachedRounds(framework, federation, self._parts, self._batches)

    @property
    def upper_bound(self) -> bool:
        """Whether a run may take less than is planned."""
        return self.framework.delta is not None and self.framework.delta.skip > 0

    def start(self) -> Iterator[Wave]:
        """Return what crosses before the first round: nothing."""
        yield from ()

    def round(self, number: int, cohort: Cohort) -> Iterator[Wave]:
        """Return the messages of a round."""
        if number <= self.framework.local_rounds:
            yield self._cached.train_blocks(cohort)
        elif self.framework.caches(self._parts):
            yield from self._cached.collect(cohort)
            if self.framework.shape == "two_part" and self.framework.mode == "coalesced":
                yield Wave((), self._cached.train())
            else:
                present = replace(cohort, asked=tuple(cohort.present), lost=frozenset())
                yield from self._exchange(present, kept=True)
        else:
            yield from self._exchange(cohort)

    def memory(self, client: Client, peak_bytes: int) -> Memory:
        """Divide the most that a client holds into its parts."""
        split = self.framework.parts_of(client).split
        own = [split.head] if split.tail is None else [split.head, split.tail]
        weights = unique_bytes(tensor for part in own for tensor in resident_tensors(part))
        state = client.model.state(self._client_part(client))
        return divided(
            peak_bytes,
            weights,
            list(state.values()),
            client.training.optimizer,
            self.federation.paper,
        )

    def _client_part(self, client: Client) -> Tensors:
        """Return what trains at a client, by name."""
        if self.framework.local_rounds:
            return self._cached.blocks(client)
        return self._batches.client_part(client)

    # Batch by batch

    def _exchange(self, cohort: Cohort, *, kept: bool = False) -> Iterator[Wave]:
        federation = self.federation
        order = federation.server.generator("order")
        names = shuffled(cohort.asked, order)
        sessions = [[name] for name in names] if self.framework.mode == "relay" else [names]
        for session in sessions:
            yield from self._session(session, cohort, order, kept)

    def _session(
        self, names: Sequence[str], cohort: Cohort, order: torch.Generator, kept: bool
    ) -> Iterator[Wave]:
        clients = {name: self.federation.clients[name] for name in names}
        begins, finishes = [], []
        for name, client in clients.items():
            begin, finish = self._ends(client)
            lost = name in cohort.lost
            begins.append(Ask(name, "begin", begin[0], None if lost else begin[1]))
            if not lost:
                finishes.append(Ask(name, "finish", *finish))
        alone = kept and self.framework.shape == "two_part"  # the server, which asks nobody
        if not alone:
            yield Wave(tuple(begins))
        chunks = {n: self.federation.chunks(c) for n, c in clients.items() if n not in cohort.lost}
        num_steps = {name: len(found) for name, found in chunks.items()}
        taken = dict.fromkeys(chunks, 0)
        one_by_one = self.framework.mode in ("relay", "splitfed_v2")
        ahead = Ahead(self._batches, self._known) if self.framework.staleness else None
        held = Kept(self._batches, self._cached, self._known) if kept else None
        for group in turns(num_steps, one_by_one, order):
            turn = {n: (clients[n], chunks[n][taken[n]]) for n in group}
            if held is not None:
                yield from held.turn(turn)
            else:
                yield from self._turn(turn) if ahead is None else ahead.turn(turn)
            for name in group:
                taken[name] += 1
        if ahead is not None:
            yield from ahead.rest()
            self._batches.stepped |= chunks.keys()
        if not alone:
            yield Wave(tuple(sorted(finishes, key=lambda ask: ask.client)))

    def _turn(self, batches: Mapping[str, tuple[Client, Chunk]]) -> Sequence[Wave]:
        """Return the messages for the batches that the server takes next."""
        digits = len(str(self.federation.server.round))
        first = batches.keys() - self._batches.stepped
        self._batches.stepped |= first
        ids = (id(chunk) for _, chunk in batches.values())
        key = ("turn", digits, tuple(batches), frozenset(first), *ids)
        if key not in self._known:
            self._known[key] = list(self._waves(batches, first))
        found: list[Wave] = self._known[key]
        return found

    def _waves(
        self, batches: Mapping[str, tuple[Client, Chunk]], first: Set[str]
    ) -> Iterator[Wave]:
        weights = {name: self._batches.weights(*batch) for name, batch in batches.items()}
        costs = {
            name: self._batches.costs(*batch, first=name in first)
            for name, batch in batches.items()
        }
        for verb, server in self._batches.served([chunk for _, chunk in batches.values()]):
            asks = [
                Ask(name, verb, *weights[name][verb], costs[name].get(verb, Work()))
                for name in batches
            ]
            yield Wave(tuple(asks), server)

    def _ends(self, client: Client) -> tuple[Pair, Pair]:
        """Return what the messages at both ends of a round weigh."""
        key = ("ends", id(client.tier), len(str(client.round)))
        if key not in self._known:
            federation, name = self.federation, client.name
            part = named("parameters", self._batches.client_part(client))
            control = {}
            if self.framework.delta is not None:
                control = {"control/copies": scalar(0.0), "control/skip": scalar(0.0)}
            steps = {"control/num_steps": scalar(0.0)}
            weight = {"control/weight": scalar(0.0)}
            self._known[key] = (
                (
                    federation.down(name, Message("begin", {**part, **control})),
                    federation.up(name, Message("begin", steps)),
                ),
                (
                    federation.down(name, Message("finish", Step().tensors())),
                    federation.up(name, Message("finish", {**part, **weight})),
                ),
            )
        found: tuple[Pair, Pair] = self._known[key]
        return found
