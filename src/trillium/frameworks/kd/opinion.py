"""What one client says of public examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from trillium.wire.soft_labels import SoftLabels


@dataclass(frozen=True)
class Opinion:
    """What one client has answered.

    Attributes:
        weight: of the client in means.
        loss: of its training.
        indices: the public examples that it speaks of, sorted.
        labels: its predictions for these, in order.
        counts: how many examples of each class it has, `(classes,)`, if asked for.
        present: which of these predictions could be told in the server's tokens, bool `(rows,)`; all
            where it is left out.
        hidden: the hidden states behind these predictions `(rows, size)`, if asked for.
    """

    weight: float
    loss: float
    indices: Sequence[int]
    labels: SoftLabels
    counts: Tensor | None = None
    present: Tensor | None = None
    hidden: Tensor | None = None
