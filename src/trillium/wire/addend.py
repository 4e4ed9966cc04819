"""What one side sends that the other only ever adds up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from trillium.wire.kinds import Kind, Tensors


@dataclass(frozen=True)
class Addend:
    """One client's part of a weighted mean; nobody needs to see it alone.

    Attributes:
        tensors: by kind and name, as those of a message.
        weight: in the mean.
        figures: numbers of which there is a mean, too, such as a loss.
        packed: the same tensors as they cross in the open, where that is shorter.
    """

    tensors: Tensors
    weight: float = 1.0
    figures: Mapping[str, float] = field(default_factory=dict)
    packed: Tensors | None = None

    def opened(self) -> Tensors:
        """Return all of it as it crosses where nothing is to be hidden."""
        numbers = {"weight": self.weight, **self.figures}
        control = {f"control/{n}": torch.tensor(v, dtype=torch.float64) for n, v in numbers.items()}
        return {**(self.tensors if self.packed is None else self.packed), **control}

    def group(self, kind: Kind) -> Tensors:
        """Return the tensors of one kind, by the name behind the kind."""
        return {
            name.removeprefix(f"{kind}/"): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(f"{kind}/")
        }
