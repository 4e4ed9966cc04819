"""What a client holds at its peak, by part."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Memory:
    """What a client holds at the moment when it holds most, in bytes.

    Attributes:
        weights: parameters and buffers, the trained ones included.
        gradients: of the trained parameters.
        optimizer: its state.
        activations: all else: what the forward pass keeps for the backward one, and temporaries.
    """

    weights: float = 0
    gradients: float = 0
    optimizer: float = 0
    activations: float = 0

    @property
    def peak(self) -> float:
        """The sum, which is what the meter of a run shows."""
        return self.weights + self.gradients + self.optimizer + self.activations

    def plus(self, other: Memory, share: float) -> Memory:
        """Return this and a share of another."""
        return Memory(
            self.weights + share * other.weights,
            self.gradients + share * other.gradients,
            self.optimizer + share * other.optimizer,
            self.activations + share * other.activations,
        )

    def rounded(self) -> Memory:
        """Return the same in whole bytes."""
        return Memory(*(round(value) for value in vars(self).values()))
