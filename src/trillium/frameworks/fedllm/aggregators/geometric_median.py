"""Robust Aggregation for Federated Learning (Pillutla et al., 2019, arXiv 1912.13445): the geometric
median by the smoothed Weiszfeld algorithm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field

from trillium.federation.means import Contribution, weighted_mean
from trillium.frameworks.fedllm.aggregators import Aggregate, Aggregator
from trillium.frameworks.fedllm.aggregators.robust import coordinate_wise, gram, median
from trillium.models.factors import Factors
from trillium.wire.kinds import Tensors

_FAR = 1e4  # times the distance of the client in the middle
_TOLERANCE = 1e-12  # of a client's share: below, another iteration changes nothing


class GeometricMedian(Aggregator, name="geometric_median"):
    """The point with the least weighted sum of distances to the clients' payloads.

    Clients with less than half of the weight cannot drag it away. It is a mean of what the clients
    sent; the iterations look for its weights alone, in the matrix of inner products.

    Attributes:
        num_iterations: most iterations of the algorithm.
        smoothing: distances below this are taken for this, so that no weight is infinite.
    """

    takes_parts: ClassVar[bool] = False

    num_iterations: int = Field(default=1000, ge=1)
    smoothing: float = Field(default=1e-6, gt=0)

    def aggregate(
        self, contributions: Sequence[Contribution], like: Tensors, factors: Sequence[Factors]
    ) -> Aggregate:
        """Return the geometric median of the flattened payloads."""
        products = gram(contributions)
        # Whoever is far out pulls by its direction alone: taken nearer, it costs the others no digits.
        lengths = products.diagonal().sqrt()
        most = _FAR * lengths.kthvalue((len(lengths) + 1) // 2).values
        nearer = torch.where(lengths > most, most / lengths, 1.0)
        products = (products * nearer * nearer[:, None]).nan_to_num(nan=0.0)
        weights = torch.tensor([c.weight for c in contributions], dtype=torch.float64)
        shares = weights / weights.sum()
        for _ in range(self.num_iterations):
            reach = products @ shares
            squares = shares @ reach - 2 * reach + products.diagonal()
            pull = weights / squares.clamp_min(0.0).sqrt().clamp_min(self.smoothing)
            before, shares = shares, pull / pull.sum()
            if float((shares - before).abs().max()) < _TOLERANCE:
                break
        pulled = [
            Contribution(c.client, share, c.tensors)
            for c, share in zip(contributions, shares.tolist(), strict=True)
        ]
        if bool((nearer < 1).any()):
            centre = coordinate_wise(contributions, contributions[0].tensors, median)
            pulled = [
                Contribution(c.client, c.weight, _nearer(c.tensors, centre, factor))
                for c, factor in zip(pulled, nearer.tolist(), strict=True)
            ]
        return Aggregate(weighted_mean(pulled, like))


def _nearer(tensors: Tensors, centre: Tensors, factor: float) -> Tensors:
    """Return tensors moved towards a centre; those that are near enough as they are."""
    if factor == 1:
        return tensors
    return {
        name: centre[name].double() + (factor * tensor.double() - factor * centre[name].double())
        for name, tensor in tensors.items()
    }
