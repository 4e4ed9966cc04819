"""Noise that hides something: a Gaussian on a grid from a stream that nobody can guess.

Values are rounded to a grid first, so that the low bits of a float tell nothing of what is released
(Mironov, 2012, "On Significance of the Least Significant Bits"). The noise is rounded to the same grid.
To add whole steps and to round commute, so what is released is the Gaussian mechanism's, rounded.
"""

from __future__ import annotations

import hashlib
import math
from typing import Final

import numpy as np
import torch
from torch import Tensor

from trillium.wire.kinds import has_values

GRID: Final = 2**20  # steps of the grid in a standard deviation
LEAST: Final = 1e-6  # of a deviation, in units of the norm: with less, steps would leave 64 bits


def on_grid(rows: Tensor, norm: float, deviation: float) -> Tensor:
    """Return rows of at most a norm as whole steps of the grid of a deviation.

    Args:
        rows: `(rows, width)`; those that are longer are scaled down.
        norm: of which no row is longer, in l2, after it was rounded.
        deviation: of the noise that is to come.

    Returns:
        int64, of the same shape, on the CPU.
    """
    step = deviation / GRID
    room = max(norm - step * math.sqrt(rows.shape[-1]) / 2, 0.0)  # rounding may add the rest
    values = rows.detach().cpu()
    norms = torch.linalg.vector_norm(values, dim=-1, keepdim=True, dtype=torch.float64)
    scale = (room / norms.clamp(min=1e-300)).clamp(max=1.0) / step
    return torch.mul(values, scale).round_().long()  # float64, as the scale is


def released(steps: Tensor, deviation: float, key: bytes) -> Tensor:
    """Return values on a grid with noise of a standard deviation, float64.

    The noise follows from the key and the values: the same ones get the same again, as in a run that is
    resumed, and others get other noise. That is how deterministic signatures draw (RFC 6979).

    Args:
        steps: whole steps of the grid, int64.
        key: a secret of 128 bits or more, as `Side.secret` gives it.
    """
    if not has_values(steps):
        return steps.double()
    found: Tensor = noisy(steps, GRID, key).double() * (deviation / GRID)
    return found


def noisy(steps: Tensor, deviation: int, key: bytes) -> Tensor:
    """Return whole steps with noise of a standard deviation in steps, as `released` draws it."""
    values = steps.numpy()
    stream = hashlib.shake_256(key + hashlib.blake2b(values.tobytes()).digest())
    bits = np.frombuffer(stream.digest(8 * values.size), dtype="<u8")
    # The lower half of the quantiles, where floats are dense, and a sign.
    lower = torch.from_numpy((((bits >> np.uint64(1)) + 0.5) * 2.0**-64).reshape(values.shape))
    signs = torch.from_numpy(((bits & np.uint64(1)) * 2.0 - 1.0).reshape(values.shape))
    drawn: Tensor = (torch.special.ndtri(lower) * signs * deviation).round().long()
    return steps + drawn


def chance(key: bytes, name: str) -> float:
    """Return a number from 0 to 1, even and secret, that follows from a key and a name."""
    drawn = hashlib.blake2b(name.encode(), key=key, digest_size=8).digest()
    return int.from_bytes(drawn, "little") * 2.0**-64
