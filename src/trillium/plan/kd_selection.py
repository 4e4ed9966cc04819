"""Which public examples a round of KD-FedLLM is about on paper, and what it costs to choose them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from trillium.federation.frozen import BATCH
from trillium.frameworks.kd.distillation import PREDICT_BATCH, is_wide
from trillium.frameworks.kd.protocol import KD
from trillium.frameworks.kd.selections import (
    Diverse,
    Random,
    Uncertain,
    farthest_first,
    predictive_entropy,
)
from trillium.models.heads import head_layer
from trillium.plan.features import run_features
from trillium.plan.federation import Federation
from trillium.plan.waves import FREE, Work
from trillium.tasks import Example
from trillium.tasks.batches import in_order


@dataclass(frozen=True)
class Choosing:
    """The choice of each round.

    Attributes:
        framework: its settings.
        federation: both sides.
    """

    framework: KD
    federation: Federation

    @property
    def depends_on_values(self) -> bool:
        """Whether nobody knows before the run which examples are chosen."""
        size = self.framework.public_per_round or len(self.federation.server.public)
        is_choice = size < len(self.federation.server.public)
        return is_choice and not isinstance(self.framework.selection, Random)

    def chosen(self, public: Sequence[Example]) -> list[int]:
        """Return the examples of the current round, sorted; the longest ones where it is not known."""
        server = self.federation.server
        if not self.depends_on_values:
            return self.framework.chosen(server)

        def size(index: int) -> tuple[int, int]:
            return server.task.num_targets(public[index]), public[index].num_tokens

        order = sorted(range(len(public)), key=size, reverse=True)
        return sorted(order[: self.framework.public_per_round])

    def work(self) -> Work:
        """Return what the server computes to choose."""
        selection, server = self.framework.selection, self.federation.server
        if not self.federation.counts:
            return FREE
        if isinstance(selection, Uncertain):
            return self._entropies()
        if isinstance(selection, Diverse) and server.round == 1:
            return self._order()
        return FREE

    def _entropies(self) -> Work:
        """Return what it costs to predict the whole public set."""
        federation, server = self.federation, self.federation.server
        with federation.paper.running():
            loop = server.loop("select", server.state)
            wide = is_wide(loop, server.task, server.model.num_classes)

        def run(chunk: list[Example]) -> None:
            predictive_entropy(replace(server, public=chunk))

        chunks = federation.chunked(in_order(server.public, PREDICT_BATCH), "select")
        return federation.summed(chunks, ("select", id(server.model)), run, by_count=wide)

    def _order(self) -> Work:
        """Return what it costs to compare all public examples with each other."""
        federation, server = self.federation, self.federation.server
        chunks = federation.chunked(in_order(server.public, BATCH), "features")
        found = federation.summed(
            chunks, ("features", id(server.model)), partial(run_features, server)
        )
        _, layer = head_layer(server.model.module)
        form = len(server.public), int(layer.weight.shape[1])

        def run() -> None:
            points = federation.paper.empty(*form)
            with server.meter.measure(("k_centre", form)):
                farthest_first(points, min(3, form[0]))  # every further one takes the same memory

        return found + federation.measure(("k_centre", form), run)
