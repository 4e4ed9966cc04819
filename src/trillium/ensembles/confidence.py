"""Who is sure counts more: weights by entropy, sample by sample.

The teacher of FedDF (Lin et al., 2020, arXiv 2006.07242) weighs all alike; under label skew most
clients have never seen the class of a sample, and show it by their entropy.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from trillium.ensembles import Ensemble, Opinions, entropy


class Confidence(Ensemble, name="confidence"):
    """Weights `exp(-entropy / scale)`: who lacks the class of a sample is mostly unsure of it.

    Attributes:
        scale: in nats; a small one leaves the word to the surest client, a large one is the mean.
    """

    scale: float = Field(0.3, gt=0)

    def weights(self, opinions: Opinions) -> Tensor:
        """Return them by client and row; the largest is 1."""
        unsure = entropy(opinions.log_probs) / self.scale
        unsure = torch.where(opinions.present, unsure, torch.inf)
        least = unsure.amin(0, keepdim=True)
        return torch.where(opinions.present, (least - unsure).exp(), 0.0)[..., None]
