"""Everything that can train trains in every round."""

from __future__ import annotations

from collections.abc import Sequence

from trillium.masks import Mask


class All(Mask, name="all"):
    """All trainable tensors in every round."""

    def trained(self, names: Sequence[str], number: int) -> set[str]:
        """Return all names."""
        return set(names)
