"""HetLoRA: Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation Models (Cho et al.,
2024, arXiv 2401.06432): its sparsity-weighted aggregation.

Factors of a lower rank are filled up with zeros. Down: adapters; a client of rank `r_k` takes the first
`r_k` components.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from trillium.federation.means import Contribution, RunningMean, cast, filled, weighted_mean
from trillium.frameworks.fedllm.aggregators import Aggregate, Aggregator
from trillium.frameworks.fedllm.aggregators.lowrank import frobenius, products, sent, without
from trillium.models.factors import Factors
from trillium.wire.kinds import Tensors


class HetLora(Aggregator, name="hetlora"):
    """The mean of factors, weighted in each layer by the norms of the clients' `scale * B_k @ A_k`.

    How many examples a client has plays no part in a layer with LoRA, but where all norms are zero;
    heads and all else are averaged by plain weights. Components that nobody sent stay as they are.
    """

    reads: ClassVar[Literal["change", "state"]] = "state"
    mixes_ranks: ClassVar[bool] = True

    def aggregate(
        self, contributions: Sequence[Contribution], like: Tensors, factors: Sequence[Factors]
    ) -> Aggregate:
        """Return the mean of heads by plain weights, and of factors by norms."""
        layers = products(contributions, factors)
        tensors = weighted_mean(without(contributions, layers), like)
        for layer in layers:
            found = sent(contributions, layer)
            norms = [
                layer.scale * frobenius([b], [a]) for a, b in zip(found.a, found.b, strict=True)
            ]
            weights = norms if any(norms) else found.shares
            means = RunningMean()
            for a, b, weight in zip(found.a, found.b, weights, strict=True):
                means.add(layer.a, filled(a, like[layer.a]), weight)
                means.add(layer.b, filled(b, like[layer.b]), weight)
            tensors |= cast(means.result(), like)
            rank = max(len(a) for a in found.a)
            tensors[layer.a][rank:] = like[layer.a][rank:]
            tensors[layer.b][:, rank:] = like[layer.b][:, rank:]
        return Aggregate(tensors)
