"""FlexLoRA: Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and Client
Resources (Bai et al., 2024, arXiv 2402.11505); with `fold_rest` it is FedMomentum (2026, arXiv
2603.08014).

The mean of the products is cut back to the adapter's rank, in the best way there is (Eckart and Young,
1936). Down: adapters; a client of rank `r_k` takes the first `r_k` components.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch

from trillium.federation.means import Contribution, weighted_mean
from trillium.frameworks.fedllm.aggregators import Aggregate, Aggregator, lowrank
from trillium.models.factors import Factors
from trillium.wire.kinds import Tensors


class Svd(Aggregator, name="svd"):
    """The best approximation of the mean of the products by the adapter's rank; clients may mix ranks.

    Its components are in descending order, and both factors have the same norm. Where the mean has
    fewer components than the adapter, the rows of `A` that are left over stay as the server holds them,
    beside zeros in `B`: two zeros would never learn again.

    Attributes:
        fold_rest: puts what the rank cannot hold into the base weights, so that nothing is lost.
    """

    reads: ClassVar[Literal["change", "state"]] = "state"
    mixes_ranks: ClassVar[bool] = True

    fold_rest: bool = False

    @property
    def folds(self) -> bool:
        """Whether base weights change."""
        return self.fold_rest

    def aggregate(
        self, contributions: Sequence[Contribution], like: Tensors, factors: Sequence[Factors]
    ) -> Aggregate:
        """Return the mean of heads, factors with the best `scale * B @ A`, and the rest by layer."""
        layers = lowrank.products(contributions, factors)
        tensors = weighted_mean(lowrank.without(contributions, layers), like)
        folds = {}
        for layer in layers:
            found = lowrank.sent(contributions, layer)
            # The scale is common to all clients and to the result, and so drops out.
            u, sigma, vt = lowrank.thin_svd(found.weighted(1.0), found.a)
            rank = like[layer.a].shape[0]
            best = lowrank.balanced(u[:, :rank], sigma[:rank], vt[:rank])
            tensors[layer.a] = like[layer.a].clone()
            tensors[layer.b] = torch.zeros_like(like[layer.b])
            tensors[layer.a][: len(best.right)] = best.right
            tensors[layer.b][:, : len(best.right)] = best.left
            if self.fold_rest and len(sigma) > rank:
                rest = lowrank.balanced(u[:, rank:], layer.scale * sigma[rank:], vt[rank:])
                folds[layer.layer] = rest.to(like[layer.b].dtype)
        return Aggregate(tensors, folds)
