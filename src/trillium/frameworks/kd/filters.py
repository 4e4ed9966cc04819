"""Filters: of which public examples a client says nothing, because it knows nothing of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor

from trillium.component import Component
from trillium.errors import UserError
from trillium.federation.frozen import frozen_features
from trillium.federation.side import Side
from trillium.tasks import Example

if TYPE_CHECKING:
    from trillium.federation.setting import Setting


class Filter(Component, kind="filter", package="trillium.frameworks.kd.filters"):
    """The selector of a client, after Selective-FD (Shao et al., 2024, arXiv 2304.01731).

    What is left out is not sent, and has no part in the teacher. Which examples those are shows the
    server something of what the client has.
    """

    def check(self, config: Setting) -> None:
        """Refuse settings that contradict each other.

        Raises:
            UserError: says which, why, and what to write instead.
        """

    def keep(self, side: Side, own: Sequence[Example], public: Sequence[Example]) -> Tensor | None:
        """Return of which public examples to speak, bool `(examples,)`; `None` is all.

        Args:
            side: the client's.
            own: its data.
            public: the examples that it is asked about.
        """
        raise NotImplementedError


# Leave out what is far from all that a client has, in the frozen model's features.


class FeatureDistance(Filter, name="feature_distance"):
    """Keep a public example whose nearest class mean is about as near as the client's own data is.

    Features are standardised by the client's own deviations around the class means. The distance of
    an own example is to the mean of its class without it; of a class with one example there is none.

    Attributes:
        quantile: of the own distances; public examples that are farther are left out.
    """

    quantile: float = Field(0.95, gt=0, le=1)

    def check(self, config: Setting) -> None:
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


# Clients speak of every example that they are asked about.


class NoFilter(Filter, name="none"):
    """Leave nothing out."""

    def keep(self, side: Side, own: Sequence[Example], public: Sequence[Example]) -> Tensor | None:
        """Return `None`."""
        return None
