"""Who tells classes apart counts more: Fed-ET (Cho et al., 2022, arXiv 2204.12703)."""

from __future__ import annotations

import torch
from torch import Tensor

from trillium.ensembles import Ensemble, Opinions


class Variance(Ensemble, name="variance"):
    """Weights by the variance of a client's logits over the classes, sample by sample."""

    def weights(self, opinions: Opinions) -> Tensor:
        """Return the variances, which log-probabilities have in common with logits."""
        found = opinions.log_probs.var(-1, correction=0)
        return torch.where(opinions.present, found, 0.0)[..., None]
