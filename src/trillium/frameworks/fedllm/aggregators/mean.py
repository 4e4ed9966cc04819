"""Weighted mean: FedAvg (McMahan et al., 2017, arXiv 1602.05629).

Of LoRA's factors it is FedIT (Zhang et al., 2023, arXiv 2305.05644): exact if one factor is common to
all clients, else off by `sum_k w_k (B_k - mean B)(A_k - mean A)`, which each round measures.
"""

from __future__ import annotations

from collections.abc import Sequence

from trillium.federation.means import Contribution, RunningMean, cast
from trillium.frameworks.fedllm.aggregators import Aggregate, Aggregator, check
from trillium.models.factors import Factors
from trillium.wire.kinds import Tensors


class Mean(Aggregator, name="mean"):
    """The mean of each tensor over those who sent it, weighted by examples or supervised tokens."""

    def begin(self, like: Tensors, factors: Sequence[Factors]) -> MeanOfRound:
        """Start a sum."""
        return MeanOfRound(like)

    def aggregate(
        self, contributions: Sequence[Contribution], like: Tensors, factors: Sequence[Factors]
    ) -> Aggregate:
        """Return `sum(weight * tensor) / sum(weight)` for each name."""
        reduction = self.begin(like, factors)
        for contribution in contributions:
            reduction.add(contribution)
        return reduction.result()


class MeanOfRound:
    """The mean of a round, under way."""

    def __init__(self, like: Tensors) -> None:
        self._like, self._means = like, RunningMean()

    def add(self, contribution: Contribution) -> None:
        """Add what one client sent to the sum; its shapes and ranks must be the server's."""
        check(contribution, self._like)
        for name, tensor in contribution.tensors.items():
            self._means.add(name, tensor, contribution.weight)

    def result(self) -> Aggregate:
        """Return the mean of all that was added."""
        return Aggregate(cast(self._means.result(), self._like))
