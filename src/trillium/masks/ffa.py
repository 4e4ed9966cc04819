"""FFA-LoRA: Improving LoRA in Privacy-preserving FL (Sun et al., 2024, arXiv 2403.12313).

`A` stays as it was drawn from the seed, and is never sent; `B` and everything else trains. The change
`B @ A` is then linear in what is exchanged: the mean is exact, at half the bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

from trillium.masks import Mask, is_factor


class FFA(Mask, name="ffa"):
    """Freeze LoRA's `A`; best with `adapter.init=orthonormal`.

    With orthonormal rows, and plain SGD on the clients, this is FedSVD (2025, arXiv 2505.12805).
    """

    def trained(self, names: Sequence[str], number: int) -> set[str]:
        """Return all names but those of `A`."""
        return {name for name in names if not is_factor(name, "A")}
