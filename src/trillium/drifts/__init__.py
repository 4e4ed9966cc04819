"""Drift: how clients with different data are kept from moving apart while they train alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from trillium.component import Component
from trillium.models.slots import State, Tensors


class Correction:
    """What one client does to its gradients in one round; nothing, unless a subclass does."""

    @property
    def label(self) -> str:
        """What the memory of a step depends on, beside the shapes."""
        return ""

    def apply(self) -> None:
        """Change the gradients in place; called after every backward pass, before clipping."""

    def answer(self) -> Tensors:
        """Return what goes back to the server beside the update."""
        return {}

    def sent(self, seen: Tensors) -> None:
        """Take note of what the server reads of the answer, once the codecs are through with it."""


@dataclass(frozen=True)
class Answered:
    """What one client answered: its weight in means, and the tensors of its correction."""

    weight: float
    tensors: Tensors


class Drift(Component, kind="drift", package="trillium.drifts"):
    """A pair of halves: what the server sends along and learns, what a client does to gradients."""

    answers: ClassVar[bool] = False
    """Whether clients send tensors back beside their updates."""

    def send(self, server: dict[str, Tensors], like: Tensors) -> Tensors:
        """Return what goes down beside the state: nothing, or a tensor for each in `like`.

        Args:
            server: what this object keeps on the server.
            like: what the client will send.
        """
        return {}

    def correction(
        self, client: dict[str, Tensors], state: State, start: Tensors, received: Tensors
    ) -> Correction:
        """Return what a client does in this round.

        Args:
            client: what this object keeps on the client between rounds.
            state: the trained parameters.
            start: their values at the start of the round.
            received: what the server's half sent.
        """
        return Correction()

    def absorb(
        self, server: dict[str, Tensors], answers: Mapping[str, Answered], num_clients: int
    ) -> None:
        """Let the server's half learn from the answers of a round."""
