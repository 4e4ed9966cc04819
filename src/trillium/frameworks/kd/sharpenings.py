"""Sharpenings: the mean of many opinions is flatter than each; what makes it less so."""

from __future__ import annotations

import math

from pydantic import Field
from torch import Tensor

from trillium.component import Component


class Sharpening(Component, kind="sharpening", package="trillium.frameworks.kd.sharpenings"):
    """Lowers the entropy of a teacher."""

    def sharpen(self, log_probs: Tensor) -> Tensor:
        """Return normalised log-probabilities `(rows, classes)` of such ones."""
        raise NotImplementedError

    def highest(self, num_classes: int) -> float:
        """Return the largest probability that this can give a class."""
        return 1.0


class ERA(Sharpening, name="era"):
    """`softmax(p / temperature)` of the probabilities `p`: DS-FL's entropy reduction aggregation.

    Itahara et al. (2020, arXiv 2008.06180). Probabilities lie between 0 and 1, so the result cannot
    exceed `1 / (1 + (V - 1) exp(-1 / temperature))` for V classes: 0.997 for 77, but 0.305 for a
    vocabulary of 50257 at temperature 0.1, where it flattens what was certain. A run warns of that;
    `power` has no such bound.

    Attributes:
        temperature: the lower, the sharper.
    """

    temperature: float = Field(0.1, gt=0)

    def sharpen(self, log_probs: Tensor) -> Tensor:
        """Return the softmax of probabilities."""
        return (log_probs.exp() / self.temperature).log_softmax(-1)

    def highest(self, num_classes: int) -> float:
        """Return what a certain row becomes."""
        return 1 / (1 + (num_classes - 1) * math.exp(-1 / self.temperature))


class NoSharpening(Sharpening, name="none"):
    """Leave the mean as it is."""

    def sharpen(self, log_probs: Tensor) -> Tensor:
        """Return them."""
        return log_probs


class Power(Sharpening, name="power"):
    """`p ** exponent`, normalised: what is certain stays, the order of classes too.

    Enhanced ERA of SCARLET (2025, arXiv 2504.19602).

    Attributes:
        exponent: 1 changes nothing; above it sharpens.
    """

    exponent: float = Field(1.5, gt=0)

    def sharpen(self, log_probs: Tensor) -> Tensor:
        """Return the multiple of the logarithms, normalised."""
        return (self.exponent * log_probs).log_softmax(-1)
