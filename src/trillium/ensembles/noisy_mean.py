"""A mean with noise, for differential privacy of the clients towards whoever sees the teacher.

The Gaussian mechanism (Dwork and Roth, 2014) on the sum of soft labels, as the noisy aggregation of
PATE (Papernot et al., 2018, arXiv 1802.08908) is on votes.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from trillium.codecs.rows import LEAST
from trillium.ensembles import Average, Ensemble, Opinions


class NoisyMean(Ensemble, name="noisy_mean"):
    """The plain mean of clipped distributions, with Gaussian noise on their sum.

    One client more or less changes the sum of a row by at most `clip` in l2 norm: that is the
    sensitivity, and the noise has `noise * clip` as its standard deviation in every entry. Of `m`
    rows in all rounds together the sensitivity is `clip * sqrt(m)`. The server sees the opinions
    themselves, and how many there are is not hidden. No accountant is run.

    Attributes:
        clip: largest l2 norm of a client's distribution of one row; none exceeds 1.
        noise: standard deviation of the noise, in units of the sensitivity of one row.
    """

    clip: float = Field(1.0, gt=0, le=1)
    noise: float = Field(1.0, ge=0)

    def weights(self, opinions: Opinions) -> Tensor:
        """Return ones."""
        return opinions.sizes.new_ones(len(opinions.sizes), 1, 1)

    def total(self, opinions: Opinions, temperature: float) -> Tensor:
        """Return the sum of clipped distributions `(rows, classes)`, without noise."""
        softened = (opinions.log_probs / temperature).softmax(-1)
        norms = softened.norm(dim=-1, keepdim=True)
        clipped = softened * (self.clip / norms).clamp(max=1.0)
        return torch.where(opinions.present[..., None], clipped, 0.0).sum(0)

    def combine(self, opinions: Opinions, temperature: float, average: Average) -> Tensor:
        """Return the noisy sum, what is negative set to zero, normalised."""
        total = self.total(opinions, temperature)
        draw = torch.Generator().manual_seed(opinions.key)
        noise = torch.randn(total.shape, generator=draw, dtype=total.dtype).to(total.device)
        noisy = (total + self.noise * self.clip * noise).clamp(min=0)
        sums = noisy.sum(-1, keepdim=True)
        shares = torch.where(sums > 0, noisy / sums, 1 / total.shape[-1])
        return shares.log().clamp(min=LEAST)
