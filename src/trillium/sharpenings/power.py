"""Enhanced ERA of SCARLET (2025, arXiv 2504.19602): a power of the probabilities."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from trillium.sharpenings import Sharpening


class Power(Sharpening, name="power"):
    """`p ** exponent`, normalised: what is certain stays, the order of classes too.

    Attributes:
        exponent: 1 changes nothing; above it sharpens.
    """

    exponent: float = Field(1.5, gt=0)

    def sharpen(self, log_probs: Tensor) -> Tensor:
        """Return the multiple of the logarithms, normalised."""
        return (self.exponent * log_probs).log_softmax(-1)
