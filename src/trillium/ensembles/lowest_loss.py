"""Whoever is best on the label is the teacher: DualMinCE of FedMKT (2024, arXiv 2406.02224)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from trillium.ensembles import Ensemble, Opinions
from trillium.tasks import IGNORE


class LowestLoss(Ensemble, name="lowest_loss"):
    """For each prediction the client with the lowest cross-entropy on its label; equals share it.

    Where there is no label all count alike. In language modelling the choice is made token by token.
    """

    needs_labels: ClassVar[bool] = True

    def weights(self, opinions: Opinions) -> Tensor:
        """Return one for the best of each row."""
        known = opinions.targets != IGNORE
        wanted = torch.where(known, opinions.targets, 0)
        losses = torch.stack(
            [functional.nll_loss(own, wanted, reduction="none") for own in opinions.log_probs]
        )
        losses = torch.where(opinions.present & known, losses, torch.inf)
        return (losses == losses.amin(0, keepdim=True)).double()[..., None]
