"""Sharpenings: the mean of many opinions is flatter than each; what makes it less so."""

from __future__ import annotations

from torch import Tensor

from trillium.component import Component


class Sharpening(Component, kind="sharpening", package="trillium.sharpenings"):
    """Lowers the entropy of a teacher."""

    def sharpen(self, log_probs: Tensor) -> Tensor:
        """Return normalised log-probabilities `(rows, classes)` of such ones."""
        raise NotImplementedError

    def highest(self, num_classes: int) -> float:
        """Return the largest probability that this can give a class."""
        return 1.0
