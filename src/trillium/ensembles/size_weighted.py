"""Who has more data counts more, as in federated averaging (McMahan et al., 2017)."""

from __future__ import annotations

from torch import Tensor

from trillium.ensembles import Ensemble, Opinions


class SizeWeighted(Ensemble, name="size_weighted"):
    """The mean weighted by the clients' examples, or supervised tokens."""

    def weights(self, opinions: Opinions) -> Tensor:
        """Return the sizes."""
        return opinions.sizes[:, None, None]
