"""What one client says of public examples."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from trillium.wire.soft_labels import SoftLabels


@dataclass(frozen=True)
class Opinion:
    """What one client has answered about the examples that it was asked about, in order.

    `counts` are its examples of each class, if asked for; `present` says which predictions could be
    told in the server's tokens, all by default.
    """

    weight: float
    loss: float
    labels: SoftLabels
    counts: Tensor | None = None
    present: Tensor | None = None
