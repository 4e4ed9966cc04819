"""Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates (Yin et al., 2018, arXiv
1803.01498): the coordinate-wise median.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from trillium.federation.means import Contribution
from trillium.frameworks.fedllm.aggregators import Aggregate, Aggregator
from trillium.frameworks.fedllm.aggregators.robust import coordinate_wise, median
from trillium.models.factors import Factors
from trillium.wire.kinds import Tensors


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
