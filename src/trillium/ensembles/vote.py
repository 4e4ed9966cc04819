"""Each client has one vote: PATE (Papernot et al., 2017, arXiv 1610.05755), without its noise."""

from __future__ import annotations

import torch
from torch import Tensor

from trillium.codecs.rows import LEAST
from trillium.ensembles import Average, Ensemble, Opinions, average_opinions


class Vote(Ensemble, name="vote"):
    """The share of the clients that hold a class for the most probable."""

    def weights(self, opinions: Opinions) -> Tensor:
        """Return ones."""
        return opinions.sizes.new_ones(len(opinions.sizes), 1, 1)

    def combine(self, opinions: Opinions, temperature: float, average: Average) -> Tensor:
        """Return the logarithms of the shares, whatever temperature and average."""
        best = opinions.log_probs.argmax(-1, keepdim=True)
        votes = torch.full_like(opinions.log_probs, LEAST).scatter(-1, best, 0.0)
        return average_opinions(votes, self.weights(opinions), opinions.present, "probabilities")
