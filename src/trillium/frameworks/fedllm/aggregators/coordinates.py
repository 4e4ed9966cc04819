"""Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates (Yin et al., 2018, arXiv
1803.01498): trimmed mean and median of coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import ClassVar

from pydantic import Field

from trillium.federation.means import Contribution
from trillium.frameworks.fedllm.aggregators import Aggregate, Aggregator
from trillium.frameworks.fedllm.aggregators.robust import coordinate_wise, median, middle
from trillium.models.factors import Factors
from trillium.wire.kinds import Tensors


class TrimmedMean(Aggregator, name="trimmed_mean"):
    """The mean of each coordinate without its largest and smallest values; each client counts once.

    Weights are not used: an attacker would claim a large one.

    Attributes:
        trim: which share of the clients is left out at each end, rounded up so that a few clients are
            trimmed, too; 0 is the unweighted mean. At least one value is always kept.
    """

    takes_parts: ClassVar[bool] = False

    trim: float = Field(default=0.1, ge=0, lt=0.5)

    def aggregate(
        self, contributions: Sequence[Contribution], like: Tensors, factors: Sequence[Factors]
    ) -> Aggregate:
        """Return the trimmed mean of each coordinate."""
        num = len(contributions)
        # A hair less, so that 0.07 of 100 clients are 7 although the product is 7.000000000000001.
        asked = math.ceil(self.trim * num - 1e-9)
        trimmed = partial(middle, num_trimmed=min(asked, (num - 1) // 2))
        return Aggregate(coordinate_wise(contributions, like, trimmed))


class Median(Aggregator, name="median"):
    """The median of each coordinate, in which each client counts once.

    Weights are not used: an attacker would claim a large one. Less than half of the clients cannot move
    a coordinate out of the range of the others.
    """

    takes_parts: ClassVar[bool] = False

    def aggregate(
        self, contributions: Sequence[Contribution], like: Tensors, factors: Sequence[Factors]
    ) -> Aggregate:
        """Return the median; the mean of the two in the middle for an even number of clients."""
        return Aggregate(coordinate_wise(contributions, like, median))
