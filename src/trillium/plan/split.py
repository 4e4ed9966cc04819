"""Split-FedLLM on paper: what crosses at the cut, batch by batch, and what each part costs."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from trillium.client import Client
from trillium.errors import UserError
from trillium.frameworks.split import Split
from trillium.frameworks.split_turns import shuffled, turns
from trillium.message import Message, named, scalar
from trillium.models.parts import Parts, Step
from trillium.models.slots import Tensors
from trillium.plan.cut import cut_model
from trillium.plan.federation import Chunk, Cohort, Federation, divided, unique_bytes
from trillium.plan.sizes import Weight
from trillium.plan.split_batches import Batches
from trillium.plan.split_cached import CachedRounds
from trillium.plan.waves import Ask, Memory, Wave, Work
from trillium.training.meters import resident_tensors

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
        if framework.staleness:
            raise UserError(
                f"a plan for framework.staleness={framework.staleness}",
                "what a client holds of two batches at once is not planned",
                "Write framework.staleness=0, whose bytes and FLOPs are nearly the same",
            )
        model, tail = federation.model, framework.tail
        if framework.shape == "u" and tail is None:
            tail = model.num_blocks
        with federation.paper.running():
            self._parts = cut_model(federation, framework.cut, tail)
            for cut in {tier.cut for tier in federation.config.tiers.values()} - {None}:
                assert cut is not None
                cut_model(federation, cut, None)
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
            yield from self._cached.round(cohort)
        else:
            yield from self._exchange(cohort)

    def memory(self, client: Client, peak_bytes: int) -> Memory:
        """Divide the most that a client holds into its parts."""
        split = self._parts.split
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

    def _exchange(self, cohort: Cohort) -> Iterator[Wave]:
        federation = self.federation
        order = federation.server.generator("order")
        names = shuffled(cohort.asked, order)
        sessions = [[name] for name in names] if self.framework.mode == "relay" else [names]
        for session in sessions:
            yield from self._session(session, cohort, order)

    def _session(
        self, names: Sequence[str], cohort: Cohort, order: torch.Generator
    ) -> Iterator[Wave]:
        clients = {name: self.federation.clients[name] for name in names}
        begins, finishes = [], []
        for name, client in clients.items():
            begin, finish = self._ends(client)
            lost = name in cohort.lost
            begins.append(Ask(name, "begin", begin[0], None if lost else begin[1]))
            if not lost:
                finishes.append(Ask(name, "finish", *finish))
        yield Wave(tuple(begins))
        chunks = {n: self.federation.chunks(c) for n, c in clients.items() if n not in cohort.lost}
        num_steps = {name: len(found) for name, found in chunks.items()}
        taken = dict.fromkeys(chunks, 0)
        one_by_one = self.framework.mode in ("relay", "splitfed_v2")
        for group in turns(num_steps, one_by_one, order):
            yield from self._turn({n: (clients[n], chunks[n][taken[n]]) for n in group})
            for name in group:
                taken[name] += 1
        yield Wave(tuple(sorted(finishes, key=lambda ask: ask.client)))

    def _turn(self, batches: Mapping[str, tuple[Client, Chunk]]) -> Sequence[Wave]:
        """Return the messages for the batches that the server takes next."""
        digits = len(str(self.federation.server.round))
        key = ("turn", digits, *((name, id(chunk)) for name, (_, chunk) in batches.items()))
        if key not in self._known:
            self._known[key] = list(self._waves(batches))
        found: list[Wave] = self._known[key]
        return found

    def _waves(self, batches: Mapping[str, tuple[Client, Chunk]]) -> Iterator[Wave]:
        weights = {name: self._batches.weights(*batch) for name, batch in batches.items()}
        costs = {name: self._batches.costs(*batch) for name, batch in batches.items()}
        alone = [[chunk] for _, chunk in batches.values()]
        together = [[chunk for _, chunk in batches.values()]]
        wanted = self.framework.sends_gradients(self._parts)
        forward, backward = Work(), Work()
        for group in together if self.framework.mode == "coalesced" else alone:
            found = self._batches.body(group, gradient=wanted)
            forward, backward = forward + found[0], backward + found[1]
        verbs = [("forward", forward + backward)]
        if self.framework.shape == "u":
            verbs = [("forward", forward), ("finish_batch", backward)]
        if wanted:
            verbs.append(("backward", Work()))
        for verb, server in verbs:
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
