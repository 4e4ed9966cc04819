"""Segments in turn, after the round-robin segments of EcoLoRA (2025, arXiv 2506.02001)."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from trillium.masks import Mask, is_factor


class Segments(Mask, name="segments"):
    """Divide LoRA's tensors into runs of neighbouring layers and train one of them in each round.

    What is not a factor of LoRA, such as the head, trains in every round.

    Attributes:
        num_segments: how many; each trains once in so many rounds.
    """

    num_segments: int = Field(default=2, ge=1)

    def trained(self, names: Sequence[str], number: int) -> set[str]:
        """Return the names of this round's segment, and all that are not LoRA's."""
        # Both factors of a layer must be in one segment, and PEFT names them by layer.
        factors = [name for name in names if is_factor(name, "A") or is_factor(name, "B")]
        layers = list(dict.fromkeys(name.partition(".lora_")[0] for name in factors))
        turn = (number - 1) % self.num_segments
        chosen = {
            layer
            for place, layer in enumerate(layers)
            if place * self.num_segments // len(layers) == turn
        }
        resting = {name for name in factors if name.partition(".lora_")[0] not in chosen}
        return set(names) - resting
