"""Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent (Blanchard et al., 2017, arXiv
1703.02757): Krum and multi-Krum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from trillium.errors import UserError
from trillium.federation.means import Contribution, weighted_mean
from trillium.frameworks.fedllm.aggregators import Aggregate, Aggregator
from trillium.frameworks.fedllm.aggregators.robust import gram
from trillium.models.factors import Factors
from trillium.wire.kinds import Tensors


class Krum(Aggregator, name="krum"):
    """The unweighted mean of those clients that are nearest to their nearest neighbours.

    A client's score is the sum of its squared distances to the `n - num_byzantine - 2` nearest ones of
    the other `n - 1`. Weights are not used: an attacker would claim a large one.

    Attributes:
        num_byzantine: how many clients may send anything; `n >= 2 * num_byzantine + 3` is needed.
        num_selected: how many clients of the best scores are averaged; 1 is Krum, more is multi-Krum,
            which needs `n >= num_byzantine + num_selected + 2`.
    """

    takes_parts: ClassVar[bool] = False

    num_byzantine: int = Field(default=1, ge=0)
    num_selected: int = Field(default=1, ge=1)

    @property
    def min_clients(self) -> int:
        """How many contributions a round needs for these options."""
        return max(2 * self.num_byzantine + 3, self.num_byzantine + self.num_selected + 2)

    def aggregate(
        self, contributions: Sequence[Contribution], like: Tensors, factors: Sequence[Factors]
    ) -> Aggregate:
        """Return the mean of the selected clients, if enough have answered for the options."""
        num = len(contributions)
        if num < self.min_clients:
            raise UserError(
                f"aggregator krum, num_byzantine={self.num_byzantine}, "
                f"num_selected={self.num_selected}",
                f"it needs {self.min_clients} clients in a round, and {num} answered",
                "Ask more clients per round, or lower num_byzantine or num_selected",
            )
        products = gram(contributions)
        squares = products.diagonal()
        distances = (squares[:, None] + squares - 2 * products).clamp_min(0.0)
        distances.fill_diagonal_(0.0)
        # The nearest one is the client itself, at no distance.
        scores = distances.sort(1).values[:, : num - self.num_byzantine - 1].sum(1)
        best = scores.argsort(stable=True)[: self.num_selected].tolist()
        chosen = [
            Contribution(contributions[i].client, 1.0, contributions[i].tensors)
            for i in sorted(best)
        ]
        return Aggregate(weighted_mean(chosen, like))
