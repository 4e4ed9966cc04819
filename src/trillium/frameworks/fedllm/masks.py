"""Masks: which trainable tensors are trained, and so sent, in a round."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from trillium.component import Component


class Mask(Component, kind="mask", package="trillium.frameworks.fedllm.masks"):
    """Chooses from the trainable tensors round by round; both sides choose alike.

    A tensor that is left out stays as it is, on the server and on every client.

    Class variables:
        alternates: whether it is not the same in all rounds.
    """

    alternates: ClassVar[bool] = False

    def trained(self, names: Sequence[str], number: int) -> set[str]:
        """Return which of all trainable tensors are trained in a round, counted from 1."""
        raise NotImplementedError


def is_factor(name: str, factor: str) -> bool:
    """Whether a tensor is the factor `A` or `B` of LoRA, by the name that PEFT gives it."""
    return f"lora_{factor}" in name.split(".")


class All(Mask, name="all"):
    """All trainable tensors in every round."""

    def trained(self, names: Sequence[str], number: int) -> set[str]:
        """Return all names."""
        return set(names)


class FFA(Mask, name="ffa"):
    """Freeze LoRA's `A`: FFA-LoRA (Sun et al., 2024, arXiv 2403.12313).

    Best with `adapter.init=orthonormal`: with that, and plain SGD on the clients, it is FedSVD (2025,
    arXiv 2505.12805).
    """

    def trained(self, names: Sequence[str], number: int) -> set[str]:
        """Return all names but those of `A`."""
        return {name for name in names if not is_factor(name, "A")}


class RoLoRA(Mask, name="rolora"):
    """Train LoRA's `B` in odd rounds and its `A` in even ones, everything else in all.

    RoLoRA (Chen et al., 2024, arXiv 2409.02346). With `framework.download=change` the factor that
    does not train is not sent, which halves the bytes.
    """

    alternates: ClassVar[bool] = True

    def trained(self, names: Sequence[str], number: int) -> set[str]:
        """Return all names but those of the factor that rests."""
        resting = "A" if number % 2 else "B"
        return {name for name in names if not is_factor(name, resting)}
