"""Defences: what a client does to activations before they leave it."""

from __future__ import annotations

from torch import Tensor

from trillium.component import Component


class Defence(Component, kind="defence", package="trillium.defences"):
    """Makes activations tell less of the texts; what it costs in accuracy is for the run to show."""

    def apply(self, rows: Tensor) -> Tensor:
        """Return what is sent in place of activations `(tokens, width)` of one message."""
        raise NotImplementedError

    def epsilon(self, num_tokens: int, num_releases: int) -> dict[str, float]:
        """Return what is guaranteed by differential privacy, if anything.

        Args:
            num_tokens: of the longest text.
            num_releases: how often the activations of a text are sent in the run.
        """
        return {}
