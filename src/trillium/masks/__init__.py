"""Masks: which trainable tensors are trained, and so sent, in a round."""

from __future__ import annotations

from collections.abc import Sequence

from trillium.component import Component


class Mask(Component, kind="mask", package="trillium.masks"):
    """Chooses from the trainable tensors round by round; both sides choose alike.

    A tensor that is left out stays as it is, on the server and on every client.
    """

    def trained(self, names: Sequence[str], number: int) -> set[str]:
        """Return the names that are trained in a round.

        Args:
            names: of all trainable tensors, in the model's order.
            number: of the round, from 1.
        """
        raise NotImplementedError


def is_factor(name: str, factor: str) -> bool:
    """Whether a tensor is the factor `A` or `B` of LoRA, by the name that PEFT gives it."""
    return f"lora_{factor}" in name.split(".")
