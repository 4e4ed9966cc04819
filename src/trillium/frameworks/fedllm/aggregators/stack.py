"""FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank Adaptations (Wang et
al., 2024, arXiv 2409.05976).

The clients' adapters, stacked, are one adapter of the sum of their ranks; it goes into the base weights
and the clients start with new ones. Down: that stack, as two factors, and the mean of the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from trillium.federation.means import Contribution, weighted_mean
from trillium.frameworks.fedllm.aggregators import Aggregate, Aggregator
from trillium.frameworks.fedllm.aggregators.lowrank import low_rank, products, sent, without
from trillium.models.factors import Factors
from trillium.wire.kinds import Tensors


class Stack(Aggregator, name="stack"):
    """The weighted mean of the products, exactly, in the base weights; clients may mix ranks."""

    reads: ClassVar[Literal["change", "state"]] = "state"
    mixes_ranks: ClassVar[bool] = True
    restarts: ClassVar[bool] = True

    @property
    def folds(self) -> bool:
        """Whether base weights change: always."""
        return True

    def aggregate(
        self, contributions: Sequence[Contribution], like: Tensors, factors: Sequence[Factors]
    ) -> Aggregate:
        """Return the mean of heads, and `scale * [w_1 B_1 ... w_C B_C] @ [A_1; ...; A_C]` by layer."""
        layers = products(contributions, factors)
        others = without(contributions, layers)
        single = {name for layer in factors for name in (layer.a, layer.b)}
        for contribution in others:
            if not single.isdisjoint(contribution.tensors):
                raise ValueError(
                    f"{contribution.client} sent one factor of a layer, which makes no product to stack"
                )
        folds = {}
        for layer in layers:
            found = sent(contributions, layer)
            stacked = low_rank(found.weighted(layer.scale), found.a)
            folds[layer.layer] = stacked.to(like[layer.b].dtype)
        return Aggregate(weighted_mean(others, like), folds)
