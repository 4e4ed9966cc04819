"""Noise in shares: each client adds a part of it, and a masked sum of enough of them bears it all.

The Distributed Discrete Gaussian Mechanism (Kairouz et al., 2021, arXiv 2102.06387). What a client
adds is scaled down to a bound, turned by a rotation that everybody knows, so that no entry stands
out, and rounded to whole steps; then it adds a discrete Gaussian of its own (Canonne et al., 2020,
NeurIPS, arXiv 2004.00010). By Renyi's divergence their sum is as private as one Gaussian.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trillium.privacy.integers import flat_of
from trillium.privacy.streams import Lanes, lanes
from trillium.privacy.sums import Shares
from trillium.rng import generator
from trillium.wire.kinds import Tensors

FINE: Final = 3.0  # steps in the root mean square of a vector that is as long as the bound
ROOM: Final = 5.0  # standard deviations of a sum on either side; what is beyond wraps around
LEAST: Final = (
    2.0  # steps in the deviation of one client: sums of less would not be as one Gaussian
)
TRIES: Final = 8  # of rounding at random, before entries are cut down to whole steps


@dataclass(frozen=True)
class NoisyGrid:
    """How tensors become whole numbers that bear noise.

    Attributes:
        shapes: of the tensors, by name.
        bound: of the l2 norm of all that one client adds.
        shares: how much noise each client adds.
        clients: how many add up, at most.
        turn: drawn for the sum; the rotation follows from it.
    """

    shapes: Mapping[str, Sequence[int]]
    bound: float
    shares: Shares
    clients: int
    turn: bytes

    @property
    def count(self) -> int:
        """How many whole numbers there are."""
        return sum(map(math.prod, self.shapes.values()))

    @property
    def most(self) -> float:
        """How many steps long a vector is at most."""
        least = LEAST * math.sqrt(self.shares.fewest) / self.shares.noise
        return max(FINE * math.sqrt(self.count), least)

    @property
    def deviation(self) -> float:
        """Standard deviation of the noise that one client adds, in steps."""
        return self.shares.noise * self.most / math.sqrt(self.shares.fewest)

    @property
    def bits(self) -> int:
        """Bits of an entry of the sum, so that hardly one of them wraps around."""
        noise = self.deviation * math.sqrt(self.clients)
        signal = self.clients * self.most * math.sqrt(2 / self.count)  # if all send the same
        return max(4, math.ceil(math.log2(2 * ROOM * math.hypot(noise, signal))))

    def write(self, tensors: Tensors) -> Lanes:
        """Return what a client adds; no two calls add the same noise.

        Raises:
            MessageError: the tensors have other names or shapes.
        """
        vector = flat_of(tensors, self.shapes)
        room = self.bound * math.sqrt(1 - self.count / 4 / self.most**2)  # rounding adds the rest
        vector = vector * (room / vector.norm().clamp(min=1e-300)).clamp(max=1.0)
        turned = self._signs * vector
        steps = _whole(_rotated(turned).numpy() * (self.most / self.bound), self.most)
        noisy = steps + discrete_gaussian(self.count, self.deviation)
        written: Lanes = (noisy & (2**self.bits - 1)).astype(lanes(self.bits))
        return written

    def read(self, total: Lanes, clients: int) -> dict[str, Tensor]:
        """Return the mean over so many clients, with its noise."""
        whole = (total.astype(np.uint64) & np.uint64(2**self.bits - 1)).astype(np.int64)
        whole = np.where(whole >= 2 ** (self.bits - 1), whole - 2**self.bits, whole)
        mean = torch.from_numpy(whole * (self.bound / self.most / clients))
        flat, names = self._signs * _rotated(mean), sorted(self.shapes)
        parts = torch.split(flat, [math.prod(self.shapes[name]) for name in names])
        return {n: p.reshape(tuple(self.shapes[n])) for n, p in zip(names, parts, strict=True)}

    @property
    def _signs(self) -> Tensor:
        draw = generator(int.from_bytes(self.turn, "little") % 2**62, "turn")
        return torch.randint(0, 2, (self.count,), generator=draw).double() * 2 - 1


def _rotated(vector: Tensor) -> Tensor:
    """Return the discrete Hartley transform: of the same length, and its own inverse."""
    found = torch.fft.fft(vector)
    turned: Tensor = (found.real - found.imag) / math.sqrt(len(vector))
    return turned


def _whole(vector: NDArray[np.float64], most: float) -> NDArray[np.int64]:
    """Return a vector in whole numbers, right on average, and never longer than a bound."""
    draw = np.random.default_rng(int.from_bytes(os.urandom(16), "little"))
    for _ in range(TRIES):
        found = np.floor(vector + draw.random(len(vector))).astype(np.int64)
        if float(found @ found) <= most**2:
            return found
    cut: NDArray[np.int64] = np.trunc(vector).astype(np.int64)
    return cut


def discrete_gaussian(count: int, deviation: float) -> NDArray[np.int64]:
    """Return secret whole numbers `k`, each with a probability in proportion to exp(-k²/2σ²).

    They follow from the operating system's bits, by a table of 64 bits a threshold.
    """
    table = _table(deviation)
    bits = np.frombuffer(os.urandom(8 * count), "<u8")
    signs = np.frombuffer(os.urandom(count), np.uint8) & 1
    found: NDArray[np.int64] = np.searchsorted(table, bits, side="right").astype(np.int64)
    return np.where(signs, found, -found)


@lru_cache(4)
def _table(deviation: float) -> NDArray[Any]:
    """Return below which of 2^64 numbers an absolute value is at most 0, 1, 2 and so on."""
    reach = np.arange(math.ceil(12 * deviation) + 1, dtype=np.longdouble)
    weights = np.exp(-((reach / np.longdouble(deviation)) ** 2) / 2)
    weights[0] /= 2  # zero comes with both signs
    tails = np.cumsum(weights[::-1])[::-1]
    shares = 1 - tails[1:] / tails[0]
    top = np.longdouble(2) ** 64
    table: NDArray[Any] = np.minimum(np.floor(shares * top), top - 1).astype(np.uint64)
    return table
