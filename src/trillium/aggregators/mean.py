"""Weighted mean: FedAvg (McMahan et al., 2017, arXiv 1602.05629)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from trillium.aggregators import Aggregator, Contribution
from trillium.models.slots import Tensors


class Mean(Aggregator, name="mean"):
    """The mean, weighted by examples (supervised tokens for language modelling).

    Sums are taken in float64, so that splitting or permuting clients changes nothing that float32
    can show.
    """

    def aggregate(self, contributions: Sequence[Contribution]) -> Tensors:
        """Return `sum(weight * tensor) / sum(weight)` for each name, in the dtype that came."""
        total = sum(contribution.weight for contribution in contributions)
        result: Tensors = {}
        for name, first in contributions[0].tensors.items():
            mean = torch.zeros_like(first, dtype=torch.float64)
            for contribution in contributions:
                share = contribution.weight / total
                mean.add_(contribution.tensors[name].double(), alpha=share)
            result[name] = mean.to(first.dtype)
        return result
