"""Batches from activations that the server keeps, where the exchange goes batch by batch.

Which samples a batch has follows from the seed, the client and the round, so both sides draw the same
ones and nobody sends any. In two parts the server has all that it needs, and trains without a word. In
the U shape it sends its output; the client compares the samples named beside it with those that it has
drawn itself, so that a gradient is never that of other texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from trillium.federation.fleet import Fleet
from trillium.federation.server import Server
from trillium.frameworks.split.activation_cache import ActivationCache, Cached
from trillium.frameworks.split.cached import at_cut
from trillium.frameworks.split.pooled import Forwarded
from trillium.frameworks.split.settings import SplitSettings
from trillium.rng import generator
from trillium.training.loop import batches
from trillium.training.settings import Training


@dataclass(frozen=True)
class _Sample:
    """A sample of a client: its position there, and where its activations lie."""

    position: int
    place: Cached

    @property
    def num_tokens(self) -> int:
        return self.place.num_tokens


@dataclass(frozen=True)
class KeptBatches:
    """The batches of a round, as the clients draw them.

    Attributes:
        cache: what is kept; it has all samples of the clients.
    """

    split: SplitSettings
    server: Server
    cache: ActivationCache

    def num_steps(self, client: str) -> int:
        """Return how many batches a client has in a round."""
        return self._training(client).num_steps(len(self.cache.samples(client)))

    def weight(self, client: str) -> float:
        """Return what `Client.weight` is: its examples, or its supervised tokens."""
        numbers, task = self.cache.labels(self.cache.samples(client)), self.server.task
        if self.split.shape == "u":  # they say how many predictions count
            return float(sum(int(own.sum()) for own in numbers))
        outputs = self.server.model.num_classes
        return float(sum(task.num_supervised(task.from_numbers(n, outputs)[None]) for n in numbers))

    def arrivals(
        self, fleet: Fleet, turns: Iterable[Sequence[str]]
    ) -> Iterator[dict[str, Forwarded]]:
        """Yield the batches of each turn, by client."""
        drawn: dict[str, Iterator[list[_Sample]]] = {}
        for clients in turns:
            present = sorted(client for client in clients if client in fleet.cohort)
            for client in present:
                if client not in drawn:
                    drawn[client] = self._draw(client)
            yield {client: self._batch(next(drawn[client])) for client in present}

    def _draw(self, client: str) -> Iterator[list[_Sample]]:
        samples = [_Sample(p, place) for p, place in enumerate(self.cache.samples(client))]
        draw = generator(self.server.seed, "batches", client, self.server.round)
        return batches(samples, self._training(client), draw)

    def _training(self, client: str) -> Training:
        return self.server.tiers[client].training(self.server.training)

    def _batch(self, chunk: list[_Sample]) -> Forwarded:
        places, server = [sample.place for sample in chunk], self.server
        rows = at_cut(self.split, server, self.cache, places)
        task = server.task if self.split.shape == "two_part" else None
        samples = tuple(sample.position for sample in chunk)
        outputs = server.model.num_classes
        found = self.cache.batch(places, task, rows, samples, num_outputs=outputs)
        return found.to(server.model.device, server.model.dtype)
