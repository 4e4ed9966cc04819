"""Norm clipping: Can You Really Backdoor Federated Learning? (Sun et al., 2019, arXiv 1911.07963)."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from trillium.federation.means import Contribution, RunningMean, cast
from trillium.frameworks.fedllm.aggregators import Aggregate, Aggregator
from trillium.frameworks.fedllm.aggregators.robust import common_names, norm
from trillium.models.factors import Factors
from trillium.wire.kinds import Tensors


class NormClip(Aggregator, name="norm_clip"):
    """The weighted mean of the changes, each scaled down to a bound on its l2 norm.

    Nobody can move the model by more than the bound; those who are within it are not held back.

    Attributes:
        bound: the largest norm; the median of this round's norms by default.
    """

    takes_parts: ClassVar[bool] = False

    bound: float | None = Field(default=None, gt=0)

    def aggregate(
        self, contributions: Sequence[Contribution], like: Tensors, factors: Sequence[Factors]
    ) -> Aggregate:
        """Return `sum(weight * min(1, bound / norm) * change) / sum(weight)`."""
        names = common_names(contributions)
        norms = [norm(contribution) for contribution in contributions]
        bound = statistics.median(norms) if self.bound is None else self.bound
        means = RunningMean()
        for contribution, length in zip(contributions, norms, strict=True):
            factor = bound / length if length > bound else 1.0
            for name in names:
                means.add(name, contribution.tensors[name], contribution.weight, factor)
        return Aggregate(cast(means.result(), like))
