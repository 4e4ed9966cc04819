"""What one side sends that the other only ever adds up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from trillium.wire.kinds import Kind, Tensors, has_values
from trillium.wire.soft_labels import SoftLabels, chunks


@dataclass(frozen=True)
class Addend:
    """One client's part of a weighted mean; nobody needs to see it alone.

    Attributes:
        tensors: by kind and name, as those of a message.
        weight: in the mean.
        figures: numbers of which there is a mean, too, such as a loss.
        packed: the same tensors as they cross in the open, where that is shorter.
        labels: soft labels by kind and name, of which a function of each row is added up. In the open
            they cross as a codec has written them, and no table of that size is made.
        noise: in units of that of a round, where clients add noise themselves.
        of_row: that function, of log-probabilities `(rows, classes)` float64.
    """

    tensors: Tensors
    weight: float = 1.0
    figures: Mapping[str, float] = field(default_factory=dict)
    packed: Tensors | None = None
    labels: Mapping[str, SoftLabels] = field(default_factory=dict)
    of_row: Callable[[Tensor], Tensor] = torch.exp
    noise: float = 1.0

    def opened(self) -> Tensors:
        """Return all of it as it crosses where nothing is to be hidden."""
        numbers = {"weight": self.weight, **self.figures}
        control = {f"control/{n}": torch.tensor(v, dtype=torch.float64) for n, v in numbers.items()}
        return {**(self.tensors if self.packed is None else self.packed), **control}

    def added(self) -> Tensors:
        """Return all that is added up, of soft labels the whole table, as it is not seen alone."""
        return {**self.tensors, **{n: self._table(own) for n, own in self.labels.items()}}

    def _table(self, labels: SoftLabels) -> Tensor:
        if not has_values(labels.records):
            return self.of_row(labels.take(slice(None)))
        table = torch.empty(len(labels), labels.num_classes)
        for rows in chunks(*table.shape):
            table[rows] = self.of_row(labels.take(rows).double())
        return table

    def group(self, kind: Kind) -> Tensors:
        """Return the tensors of one kind, by the name behind the kind."""
        return {
            name.removeprefix(f"{kind}/"): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(f"{kind}/")
        }
