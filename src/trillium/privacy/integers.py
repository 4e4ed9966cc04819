"""Floats as whole numbers of a range that all clients share, so that they can be added up exactly.

The range of a tensor follows from the sum before: clients add to it by how much their largest entry
differs from the range, and how many entries were beyond it. Entries beyond are moved to its end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trillium.privacy.streams import Lanes, lanes
from trillium.privacy.sums import WIDE
from trillium.wire.kinds import MessageError, Tensors

FIRST: Final = 2.0**18  # the range of what nothing is known of; a step is 2e-9 then
MARGIN: Final = 2.0  # of a range over the mean of the largest entries
_OCTAVES: Final = 8.0  # by which a largest entry can be told to differ from a range
_FAR: Final = 64.0  # the same of a range of which nothing was known


@dataclass(frozen=True)
class Grid:
    """How tensors become whole numbers, those of several clients so that their sum does not wrap.

    Attributes:
        shapes: of the tensors, by name.
        ranges: of each of them, in the order of the names: the largest absolute value.
        levels: bits of an entry of one client.
        clients: how many add up, at most.
    """

    shapes: Mapping[str, Sequence[int]]
    ranges: Sequence[float]
    levels: int
    clients: int

    @property
    def names(self) -> list[str]:
        """The names in the order of the entries."""
        return sorted(self.shapes)

    @property
    def top(self) -> int:
        """The largest whole number that stands for a value; the smallest is below zero by as much."""
        return (1 << self.levels - 1) - 1

    @property
    def bits(self) -> int:
        """Bits of an entry of the sum."""
        return (self.clients * 2 * self.top).bit_length()

    @property
    def count(self) -> int:
        """How many whole numbers there are: all entries, two for each tensor, and one."""
        return sum(map(math.prod, self.shapes.values())) + 2 * len(self.shapes) + 1

    @property
    def _octaves(self) -> float:
        return _FAR if self.levels == WIDE else _OCTAVES

    def write(self, tensors: Tensors) -> Lanes:
        """Return what a client adds.

        Raises:
            MessageError: the tensors have other names or shapes.
        """
        _check_shapes(tensors, self.shapes)
        found, octaves, moved, beyond, count = [], [], [], 0, 0
        for name, reach in zip(self.names, self.ranges, strict=True):
            flat = tensors[name].detach().reshape(-1).double().cpu().numpy()
            largest = float(np.abs(flat).max(initial=0.0))
            if not math.isfinite(largest):
                raise MessageError(f"{name} holds NaN or infinity")
            octaves.append(math.log2(largest / reach) / self._octaves if largest else 0.0)
            moved.append(float(largest > 0))
            beyond, count = beyond + int((np.abs(flat) > reach).sum()), count + len(flat)
            found.append(flat / reach)
        own = [*octaves, *moved, beyond / max(count, 1)]
        values = np.clip(np.concatenate([*found, own]), -1.0, 1.0)
        whole: Lanes = np.rint(values * self.top).astype(np.int64) + self.top
        written: Lanes = whole.astype(lanes(self.bits))
        return written

    def read(self, total: Lanes, clients: int) -> Mean:
        """Return what the sum of so many clients says."""
        modulus = np.uint64(2**self.bits - 1)
        whole = (total.astype(np.uint64) & modulus).astype(np.int64) - clients * self.top
        means: NDArray[np.float64] = whole / (clients * self.top)
        tensors, start = {}, 0
        for name, reach in zip(self.names, self.ranges, strict=True):
            size = math.prod(self.shapes[name])
            part = torch.from_numpy(means[start : start + size] * reach)
            tensors[name], start = part.reshape(tuple(self.shapes[name])), start + size
        # Whose tensor has rested says nothing of how large it may be.
        told, moved = np.split(means[start:-1], 2)
        octaves = told / np.where(moved > 0, moved, 1.0) * self._octaves
        factors = np.where(moved > 0, MARGIN * np.exp2(octaves), 1.0).tolist()
        ranges = {
            name: reach * factor
            for name, reach, factor in zip(self.names, self.ranges, factors, strict=True)
        }
        return Mean(tensors, ranges, float(means[-1]))


def flat_of(tensors: Tensors, shapes: Mapping[str, Sequence[int]]) -> Tensor:
    """Return tensors as one vector, float64, in the order of their names; `MessageError` as `write`."""
    _check_shapes(tensors, shapes)
    flat = torch.cat([tensors[n].detach().reshape(-1).double().cpu() for n in sorted(shapes)])
    if not bool(torch.isfinite(flat).all()):
        raise MessageError("what is to be added up holds NaN or infinity")
    return flat


def _check_shapes(tensors: Tensors, shapes: Mapping[str, Sequence[int]]) -> None:
    if {n: tuple(t.shape) for n, t in tensors.items()} != {n: tuple(s) for n, s in shapes.items()}:
        raise MessageError("what is to be added up has other names or shapes than was said")


@dataclass(frozen=True)
class Mean:
    """What a sum says.

    Attributes:
        tensors: the means over the clients, float64.
        ranges: of the next sum, by name.
        beyond: the mean share of the entries that were beyond the ranges.
    """

    tensors: dict[str, Tensor]
    ranges: dict[str, float]
    beyond: float

    def known(self) -> dict[str, float]:
        """Return the ranges after a first sum: twice as wide, as what has just begun may grow.

        Where nothing came, it is the range of the others.
        """
        came = {n: 2 * r for n, r in self.ranges.items() if bool(self.tensors[n].any())}
        return {n: came.get(n, max(came.values())) for n in self.ranges} if came else {}
