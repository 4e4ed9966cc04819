"""Small parts that codecs send beside the main one, and what is checked before they are believed."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Final

import torch
from torch import Tensor

from trillium.wire.kinds import Limits

LIMITS: Final = Limits()


class Parts(dict[str, Tensor]):
    """Parts of a tensor that came; `most` is how many entries it can have."""

    def __init__(self, parts: Mapping[str, Tensor], most: int) -> None:
        super().__init__(parts)
        self.most = most


def most_of(parts: Mapping[str, Tensor]) -> int:
    """Return how many entries the tensor of these parts can have."""
    return parts.most if isinstance(parts, Parts) else LIMITS.max_bytes // 4


def expect_parts(parts: Mapping[str, Tensor], names: Collection[str]) -> None:
    """Raise `ValueError` unless these parts have come, and no others."""
    if parts.keys() != set(names):
        raise ValueError(f"parts {sorted(parts)[:4]}, expected {sorted(names)}")


def shape_part(tensor: Tensor) -> Tensor:
    """Return the shape of a tensor as int64, for a codec whose parts do not show it."""
    return torch.tensor(tensor.shape, dtype=torch.int64)


def read_shape(part: Tensor, most: int) -> tuple[int, ...]:
    """Return the shape that a peer claims; `ValueError` if it is none, or of more entries than that."""
    if part.dtype != torch.int64 or part.dim() != 1 or len(part) > LIMITS.max_dims:
        raise ValueError(f"a shape that is {part.dtype} {tuple(part.shape)}")
    shape = tuple(part.tolist())
    if min(shape, default=0) < 0 or math.prod(shape) > most:
        raise ValueError(f"a tensor of shape {shape} is not accepted, at most {most} entries are")
    return shape


def vector_of_floats(part: Tensor, length: int) -> Tensor:
    """Return a main part as float32; `ValueError` if it is not a vector of this length."""
    if not part.is_floating_point() or part.shape != (length,):
        raise ValueError(f"{part.dtype} {tuple(part.shape)}, expected {length} floats")
    return part.float()


def num_kept(fraction: float, total: int) -> int:
    """Return how many entries a fraction of a tensor is: rounded up, and at least one if it has any."""
    return min(total, max(1, math.ceil(fraction * total)))
