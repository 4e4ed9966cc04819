"""HAFLQ: Heterogeneous Adaptive Federated LoRA Fine-tuned LLM with Quantization (Su et al., 2024, arXiv
2411.06581): its rank-1-matrix-level aggregation.

Each component, a row of `A` and a column of `B`, is averaged over those clients that have it, so that
clients of a low rank do not dilute the others. Down: adapters; a client of rank `r_k` takes the first
`r_k` components.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

import torch

from trillium.federation.means import Contribution, RunningMean, filled, weighted_mean
from trillium.frameworks.fedllm.aggregators import Aggregate, Aggregator
from trillium.models.factors import Factors
from trillium.wire.kinds import Tensors


class RankWise(Aggregator, name="rank_wise"):
    """The weighted mean of each component over those who have it; clients may mix ranks.

    Components that nobody sent do not change.
    """

    mixes_ranks: ClassVar[bool] = True

    def aggregate(
        self, contributions: Sequence[Contribution], like: Tensors, factors: Sequence[Factors]
    ) -> Aggregate:
        """Return the mean of each component, and of all other tensors."""
        # Where all clients have the same rank, this is all that there is to do.
        tensors = weighted_mean(contributions, like)
        for name, dim in [(f.a, 0) for f in factors] + [(f.b, 1) for f in factors]:
            senders = [c for c in contributions if name in c.tensors]
            ranks = sorted({c.tensors[name].shape[dim] for c in senders})
            if len(ranks) > 1:
                mean = _mean(senders, name, dim, ranks)
                tensors[name] = filled(mean, like[name]).to(like[name].dtype)
        return Aggregate(tensors)


def _mean(
    senders: Sequence[Contribution], name: str, dim: int, ranks: Sequence[int]
) -> torch.Tensor:
    """Return the mean of a factor, piece by piece: a client has a piece as a whole or not at all."""
    means = RunningMean()
    pieces = [(start, stop - start) for start, stop in pairwise([0, *ranks])]
    for contribution in senders:
        tensor = contribution.tensors[name]
        for start, length in pieces:
            if start < tensor.shape[dim]:
                means.add(f"{start}", tensor.narrow(dim, start, length), contribution.weight)
    found = means.result()
    return torch.cat([found[f"{start}"] for start, _ in pieces], dim)
