"""FedKSeed on paper: scalars along the directions that clients draw, and two passes a step."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch

from trillium.federation.client import Client
from trillium.frameworks.fedkseed import CHUNK, FedKSeed, Walker
from trillium.plan.cohorts import Cohort
from trillium.plan.federation import Federation
from trillium.plan.memory import divided, unique_bytes
from trillium.plan.sizes import Weight
from trillium.plan.waves import Ask, Memory, Wave, Work
from trillium.tasks import Example
from trillium.tasks.batches import collate
from trillium.training.loop import task_objective
from trillium.training.meters import resident_tensors
from trillium.wire.message import Message, scalar


class _PaperWalker(Walker):
    """Moves a model without values: one part of each vector stands for all, which come in turn."""

    @torch.no_grad()
    def move(self, seed: int, steps: Mapping[int, float]) -> None:
        """Do what takes memory in a move."""
        for flat in self.flat:
            part = flat[:CHUNK]
            part.add_(torch.empty(len(part)).to(part.dtype))


@dataclass
class FedKSeedRounds:
    """The rounds of FedKSeed.

    Attributes:
        framework: its settings.
        federation: both sides.
    """

    framework: FedKSeed
    federation: Federation
    _walked: set[int] = field(default_factory=set)  # directions that any client has gone
    _weights: dict[tuple[str, int, int, int], Weight] = field(default_factory=dict)

    upper_bound = True
    """A direction along which the loss does not change, in its last digit, is not told."""

    def __post_init__(self) -> None:
        federation = self.federation
        with federation.paper.running():
            self.framework.start(federation.server, federation.fleet)  # refuses what cannot be

    def start(self) -> Iterator[Wave]:
        """Return what crosses before the first round: nothing."""
        yield from ()

    def round(self, number: int, cohort: Cohort) -> Iterator[Wave]:
        """Return the messages of a round."""
        drawn = {name: self._drawn(self.federation.clients[name]) for name in cohort.asked}
        yield Wave(tuple(self._ask(n, drawn[n], n in cohort.lost) for n in cohort.asked))
        self._walked = self._walked.union(*(drawn[name] for name in cohort.present))

    def memory(self, client: Client, peak_bytes: int) -> Memory:
        """Divide the most that a client holds into its parts; it keeps no gradient."""
        weights = unique_bytes(resident_tensors(client.model.mount(client.model.state())))
        paper, optimizer = self.federation.paper, client.training.optimizer
        return divided(peak_bytes, weights, [], optimizer, paper)

    def _drawn(self, client: Client) -> set[int]:
        """Return the directions that a client goes in a round."""
        num_steps = client.training.num_steps(len(client.examples))
        draw = client.generator("directions")
        return {*torch.randint(self.framework.num_seeds, (num_steps,), generator=draw).tolist()}

    def _ask(self, name: str, drawn: Collection[int], lost: bool) -> Ask:
        client, federation = self.federation.clients[name], self.federation
        place = (id(client.tier), len(str(client.round)))
        key = ("down", *place, len(self._walked))
        if key not in self._weights:
            message = Message("walk", self._scalars(self._walked))
            self._weights[key] = federation.down(name, message)
        down = self._weights[key]
        if lost:
            return Ask(name, "walk", down, None)
        key = ("up", *place, len(drawn))
        if key not in self._weights:
            figures = {"control/weight": scalar(0.0), "control/loss": scalar(0.0)}
            message = Message("walk", {**self._scalars(drawn), **figures})
            self._weights[key] = federation.up(name, message)
        return Ask(name, "walk", down, self._weights[key], self._walk(client))

    def _scalars(self, walked: Collection[int]) -> dict[str, torch.Tensor]:
        """Return the tensors that tell of so many directions."""
        scalars = torch.zeros(self.framework.num_seeds)
        scalars[: len(walked)] = 1.0
        return self.framework._encode(scalars)

    def _walk(self, client: Client) -> Work:
        """Return what a client computes in a round."""
        model, framework = client.model, self.framework
        objective = task_objective(client.task, client.examples)

        def run(chunk: list[Example]) -> None:
            walker = _PaperWalker.at_start(client)
            module = model.mount(walker.state).eval()
            batch = collate(chunk, model.tokenizer.pad_token_id, model.device)
            loss = partial(objective, module, batch)
            with client.meter.measure(("walk", batch.layout), lambda: resident_tensors(module)):
                framework._step(walker, client.seed, 0, loss)

        chunks = self.federation.chunks(client)
        return self.federation.summed(chunks, ("walk", id(model), repr(client.training)), run)
