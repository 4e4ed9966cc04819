"""What one client says of public examples."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from trillium.wire.soft_labels import SoftLabels


@dataclass(frozen=True)
class Opinion:
    """What one client has answered.

    Attributes:
        labels: its predictions for the examples that it was asked about, in order.
        counts: how many examples of each class it has, `(classes,)`, if asked for.
        present: which of these predictions could be told in the server's tokens, bool `(rows,)`; all
            where it is left out.
    """

    weight: float
    loss: float
    labels: SoftLabels
    counts: Tensor | None = None
    present: Tensor | None = None
