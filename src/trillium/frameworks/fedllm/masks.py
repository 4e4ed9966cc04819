"""Masks: which trainable tensors are trained, and so sent, in a round."""

from __future__ import annotations

from collections.abc import Sequence

from trillium.component import Component


class Mask(Component, kind="mask", package="trillium.frameworks.fedllm.masks"):
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


# Everything that can train trains in every round.


class All(Mask, name="all"):
    """All trainable tensors in every round."""

    def trained(self, names: Sequence[str], number: int) -> set[str]:
        """Return all names."""
        return set(names)


# FFA-LoRA: Improving LoRA in Privacy-preserving FL (Sun et al., 2024, arXiv 2403.12313).


class FFA(Mask, name="ffa"):
    """Freeze LoRA's `A`; best with `adapter.init=orthonormal`.

    With orthonormal rows, and plain SGD on the clients, this is FedSVD (2025, arXiv 2505.12805).
    """

    def trained(self, names: Sequence[str], number: int) -> set[str]:
        """Return all names but those of `A`."""
        return {name for name in names if not is_factor(name, "A")}


# RoLoRA: Robust Federated Finetuning via Alternating LoRA (Chen et al., 2024, arXiv 2409.02346).


class RoLoRA(Mask, name="rolora"):
    """Train LoRA's `B` in odd rounds and its `A` in even ones, everything else in all.

    With `framework.download=change` the factor that rests does not travel, which halves the bytes.
    """

    def trained(self, names: Sequence[str], number: int) -> set[str]:
        """Return all names but those of the factor that rests."""
        resting = "A" if number % 2 else "B"
        return {name for name in names if not is_factor(name, resting)}
