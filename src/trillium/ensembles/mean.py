"""Every opinion counts alike: FedMD (Li and Wang, 2019, arXiv 1910.03581) and DS-FL (2020)."""

from __future__ import annotations

from torch import Tensor

from trillium.ensembles import Ensemble, Opinions


class Mean(Ensemble, name="mean"):
    """The plain mean over the clients that said something."""

    def weights(self, opinions: Opinions) -> Tensor:
        """Return ones."""
        return opinions.sizes.new_ones(len(opinions.sizes), 1, 1)
