"""FedEx-LoRA: Exact Aggregation for Federated and Efficient Fine-Tuning (Singhal et al., 2024, arXiv
2410.09432).

The adapters become the mean of the factors, and what that is off from the mean of the products goes
into the base weights. Down: the mean, and that residual as two factors of rank `(C - 1) r` at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from trillium.federation.means import Contribution, weighted_mean
from trillium.frameworks.fedllm.aggregators import Aggregate, Aggregator, lowrank
from trillium.models.factors import Factors
from trillium.wire.kinds import Tensors


class FedEx(Aggregator, name="fedex"):
    """The mean of the factors, with the residual of their product in the base weights.

    Attributes:
        rank: keeps the best approximation of the residual of so many components; all of it by
            default, which is exact.
    """

    reads: ClassVar[Literal["change", "state"]] = "state"

    rank: int | None = Field(default=None, ge=1)

    @property
    def folds(self) -> bool:
        """Whether base weights change: always."""
        return True

    def aggregate(
        self, contributions: Sequence[Contribution], like: Tensors, factors: Sequence[Factors]
    ) -> Aggregate:
        """Return the mean of all tensors and `scale * (sum w B A - mean B @ mean A)` by layer."""
        folds = {}
        for layer in lowrank.products(contributions, factors):
            lefts, rights = lowrank.residual(lowrank.sent(contributions, layer), layer.scale)
            if not lefts:
                continue
            if self.rank is None:
                found = lowrank.low_rank(lefts, rights)
            else:
                u, sigma, vt = lowrank.thin_svd(lefts, rights)
                found = lowrank.balanced(u[:, : self.rank], sigma[: self.rank], vt[: self.rank])
            folds[layer.layer] = found.to(like[layer.b].dtype)
        return Aggregate(weighted_mean(contributions, like), folds)
