"""RoLoRA: Robust Federated Finetuning via Alternating LoRA (Chen et al., 2024, arXiv 2409.02346).

One factor trains in odd rounds, the other in even ones. The frozen one is common to all clients, so
the mean of the other is exact. `B` goes first: it starts at zero, where the gradient of `A` is zero.
"""

from __future__ import annotations

from collections.abc import Sequence

from trillium.masks import Mask, is_factor


class RoLoRA(Mask, name="rolora"):
    """Train LoRA's `B` in odd rounds and its `A` in even ones, everything else in all.

    With `framework.download=change` the factor that rests does not travel, which halves the bytes.
    """

    def trained(self, names: Sequence[str], number: int) -> set[str]:
        """Return all names but those of the factor that rests."""
        resting = "A" if number % 2 else "B"
        return {name for name in names if not is_factor(name, resting)}
