"""Random rotations that cost O(n log n): sign flips, then a Walsh-Hadamard transform in blocks.

Additions, subtractions and multiplications in float32 and in a fixed order: the same bits everywhere.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

from trillium.wire.codecs.seeded import signs

_LARGEST: Final = torch.finfo(torch.float32).max


def rotate(rows: Tensor, block: int, key: int) -> Tensor:
    """Return `H D x` of each row `(…, n)`, float32: an orthonormal map onto itself.

    A row is cut into blocks, a power of two, and its rest into smaller powers of two, so that
    nothing has to be filled up and the shape stays.
    """
    return _hadamard(rows * signs(key, rows.shape[-1]).to(rows.device), block)


def rotate_back(rows: Tensor, block: int, key: int) -> Tensor:
    """Return what `rotate` was given."""
    return _hadamard(rows, block) * signs(key, rows.shape[-1]).to(rows.device)


def _hadamard(rows: Tensor, block: int) -> Tensor:
    """Apply the orthonormal Walsh-Hadamard transform, which is its own inverse, block by block."""
    width = rows.shape[-1]
    whole = width - width % block
    done = [
        _transform(rows[..., :whole].reshape(*rows.shape[:-1], whole // block, block)).flatten(-2)
    ]
    start, size = whole, block
    while start < width:
        if start + size <= width:
            done.append(_transform(rows[..., start : start + size]))
            start += size
        else:
            size //= 2
    return torch.cat(done, dim=-1)


def _transform(values: Tensor) -> Tensor:
    size = values.shape[-1]
    result = values / size  # first, so that no sum overflows; exact, since it is a power of two
    half = 1
    while half < size:
        pairs = result.reshape(*values.shape[:-1], size // (2 * half), 2, half)
        left, right = pairs[..., 0, :], pairs[..., 1, :]
        result = torch.stack([left + right, left - right], dim=-2).flatten(-3)
        half *= 2
    return (result * math.sqrt(size)).clamp(-_LARGEST, _LARGEST)
