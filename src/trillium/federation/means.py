"""Weighted means in which neither the order of the clients nor narrow dtypes can show.

Sums run in twice the precision of float64: beside the rounded sum stands the sum of what rounding
lost, which Knuth's two-sum finds without error (The Art of Computer Programming, volume 2, 4.2.2;
compensated summation of Neumaier, 1974). A float64 sum alone would depend on the order of its terms in
its last bits, and a float32 that it is rounded to, once in a while, too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from trillium.wire.kinds import Tensors, has_values

_CHUNK = 2**15  # entries at a time: a sum's temporaries stay in the cache, and small


@dataclass(frozen=True)
class Contribution:
    """What one client sent, weighted by its examples or supervised tokens.

    Tensors may lack, where a client adapts fewer layers; a client of a lower rank `r_k` sends the
    first `r_k` rows of `A` and columns of `B`.
    """

    client: str
    weight: float
    tensors: Tensors


class RunningMean:
    """A weighted mean for each name, over those who sent it, in two float64 numbers per entry."""

    def __init__(self) -> None:
        self._sums: dict[str, _Sum] = {}

    def add(self, name: str, tensor: Tensor, weight: float, factor: float = 1.0) -> None:
        """Take `factor * tensor` into a mean with a weight that is not negative."""
        if name not in self._sums:
            self._sums[name] = _Sum(tensor)
        self._sums[name].add(tensor, weight, factor)

    def result(self) -> Tensors:
        """Return the mean for each name in float64; zero where all weights are zero."""
        return {name: total.mean() for name, total in self._sums.items()}


class _Sum:
    """Sum of weighted tensors, and of their weights, each as a float64 and what it lacks."""

    def __init__(self, like: Tensor) -> None:
        self._shape = like.shape
        self._high = like.new_zeros(like.numel(), dtype=torch.float64)
        self._low = torch.zeros_like(self._high)
        self._weight, self._lost = 0.0, 0.0

    def add(self, tensor: Tensor, weight: float, factor: float) -> None:
        assert tensor.shape == self._shape
        flat = tensor.detach().reshape(-1)
        if not has_values(flat):
            self._high += flat
        for start in range(0, flat.numel() if has_values(flat) else 0, _CHUNK):
            chunk = slice(start, start + _CHUNK)
            high = self._high[chunk]
            term = torch.mul(flat[chunk].double(), weight * factor)
            total = high + term
            taken = total - high
            self._low[chunk] += (high - (total - taken)) + (term - taken)
            high.copy_(total)
        total_weight = self._weight + weight
        taken_weight = total_weight - self._weight
        self._lost += (self._weight - (total_weight - taken_weight)) + (weight - taken_weight)
        self._weight = total_weight

    def mean(self) -> Tensor:
        weight = self._weight + self._lost
        mean = (self._high + self._low).div_(weight if weight else 1.0)
        return mean.view(self._shape)


def weighted_mean(contributions: Iterable[Contribution], like: Tensors) -> Tensors:
    """Return the weighted mean for each name over those who sent it, in the dtype of `like`.

    Factors of a lower rank than the server's are filled up with zeros.
    """
    means = RunningMean()
    for contribution in contributions:
        for name, tensor in contribution.tensors.items():
            means.add(name, filled(tensor, like[name]), contribution.weight)
    return cast(means.result(), like)


def filled(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a tensor with zeros behind its entries up to the shape of `like`."""
    if tensor.shape == like.shape:
        return tensor
    missing = [want - have for have, want in zip(tensor.shape, like.shape, strict=True)]
    return pad(tensor, [size for late in reversed(missing) for size in (0, late)])


def cast(tensors: Tensors, like: Tensors) -> Tensors:
    """Return tensors in the dtypes of `like`."""
    return {name: tensor.to(like[name].dtype) for name, tensor in tensors.items()}
