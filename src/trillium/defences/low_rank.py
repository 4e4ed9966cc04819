"""Send only the leading directions of activations.

Principal components are part of SplitCom (2026, arXiv 2602.10564), there to save bytes.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from trillium.defences import Defence


class LowRankDefence(Defence, name="low_rank"):
    """Project the activations of a message onto their leading principal directions.

    It gives no guarantee: what tells tokens apart is often among the leading directions.

    Attributes:
        rank: directions that are kept.
    """

    rank: int = Field(default=16, ge=1)

    def apply(self, rows: Tensor) -> Tensor:
        """Return the projection, of the same shape."""
        wide = rows.double()
        mean = wide.mean(0)
        left, sizes, right = torch.linalg.svd(wide - mean, full_matrices=False)
        kept = min(self.rank, len(sizes))
        found: Tensor = (left[:, :kept] * sizes[:kept]) @ right[:kept] + mean
        return found.to(rows.dtype)
