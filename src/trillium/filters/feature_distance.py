"""Leave out what is far from all that a client has, in the frozen model's features.

Selective-FD (Shao et al., 2024, arXiv 2304.01731) estimates a density ratio with kernels (KuLSIF); this
is the same idea with a distance to class means, as Mahalanobis scores of out-of-distribution detection
are (Lee et al., 2018, arXiv 1807.03888), of a diagonal covariance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor

from trillium.errors import UserError
from trillium.filters import Filter
from trillium.frozen import frozen_features
from trillium.side import Side
from trillium.tasks import Example

if TYPE_CHECKING:
    from trillium.config import ExperimentConfig


class FeatureDistance(Filter, name="feature_distance"):
    """Keep a public example whose nearest class mean is about as near as the client's own data is.

    Features are standardised by the client's own deviations around the class means. The distance of
    an own example is to the mean of its class without it; of a class with one example there is none.

    Attributes:
        quantile: of the own distances; public examples that are farther are left out.
    """

    quantile: float = Field(0.95, gt=0, le=1)

    def check(self, config: ExperimentConfig) -> None:
        """Refuse tasks without classes."""
        if config.task.peft_task != "SEQ_CLS":
            raise UserError(
                f"framework.filter={self.name} with task={config.task.name}",
                "it goes by the means of classes",
                "Write framework.filter=none",
            )

    def keep(self, side: Side, own: Sequence[Example], public: Sequence[Example]) -> Tensor | None:
        """Return which are near enough; all where the client has no class of two examples."""
        classes, labels = torch.unique(torch.stack([e.labels for e in own]), return_inverse=True)
        found = frozen_features(side, own).double()
        counts = torch.bincount(labels, minlength=len(classes)).double()
        sums = torch.zeros(len(classes), found.shape[1], dtype=torch.float64)
        means = sums.index_add(0, labels, found) / counts[:, None]
        residuals = found - means[labels]
        several = counts[labels] > 1
        if not bool(several.any()) or not public:
            return None
        deviation = residuals[several].square().mean(0).sqrt().clamp(min=1e-12)
        without = counts[labels] / (
            counts[labels] - 1
        )  # makes of a residual that to the others' mean
        own_distances = (residuals[several] / deviation).norm(dim=1) * without[several]
        theirs = frozen_features(side, public).double() / deviation
        nearest = torch.cdist(theirs, means / deviation).amin(1)
        return nearest <= torch.quantile(own_distances, self.quantile)
