"""Sums over features: what clients send, how it adds up, and how a solution becomes a head.

Everything is float64 between the messages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trillium.wire.kinds import MessageError, has_values
from trillium.wire.message import Message


@dataclass(frozen=True)
class Solution:
    """A head on standardised features, and how to look at it as if an example had not been there.

    An example's logits without its own influence are about `gain * logits`, less `penalty` at its
    class. Weight `(classes, features)`, bias and penalty `(classes,)`; the gain is at least 1.
    """

    weight: Tensor
    bias: Tensor
    gain: float
    penalty: Tensor


@dataclass(frozen=True)
class Scaling:
    """The standardisation `(x - mean) / deviation`, `(width,)`; a constant feature's deviation is 1."""

    mean: Tensor
    deviation: Tensor

    @classmethod
    def read(cls, message: Message, width: int, dtype: torch.dtype) -> Scaling:
        """Return a message's scaling; `MessageError` unless deviations are above zero."""
        mean, deviation = (
            message.tensor(f"control/{name}", dtype, (width,)).double()
            for name in ("mean", "deviation")
        )
        if not bool((deviation > 0).all()):
            raise MessageError(f"{message.verb}: a deviation is not above zero")
        return cls(mean, deviation)

    def to(self, dtype: torch.dtype) -> Scaling:
        """Return it with the values that it has after crossing in `dtype`."""
        return Scaling(self.mean.to(dtype), self.deviation.to(dtype))

    def tensors(self) -> dict[str, Tensor]:
        """Return what `read` reads."""
        return {"control/mean": self.mean, "control/deviation": self.deviation}

    def apply(self, features: Tensor, basis: Tensor | None) -> Tensor:
        """Return features `(rows, width)` standardised, and in terms of the basis if there is one."""
        found = (features.double() - self.mean) / self.deviation
        return found if basis is None else found @ basis

    def unfold(self, solution: Solution, basis: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return weight `(classes, width)` and bias `(classes,)` of the same head on raw features."""
        weight = solution.weight if basis is None else solution.weight @ basis.T
        weight = weight / self.deviation.double()
        return weight, solution.bias - weight @ self.mean.double()


def pooled_scaling(moments: Sequence[tuple[float, Tensor, Tensor]], centre: bool) -> Scaling:
    """Return the pooled data's scaling from count, mean and deviation `(width,)` of each client.

    If features are not to be centred, their deviation is from zero.
    """
    total = sum(count for count, _, _ in moments)
    mean = torch.stack([mean * (count / total) for count, mean, _ in moments]).sum(0)
    if not centre:
        mean = torch.zeros_like(mean)
    # About the common mean, so that nothing cancels.
    parts = [(d.square() + (m - mean).square()) * (n / total) for n, m, d in moments]
    deviation = torch.stack(parts).sum(0).sqrt()
    tiny = torch.finfo(torch.float32).eps * mean.abs()  # what is left of a constant feature
    return Scaling(mean, torch.where(deviation > tiny, deviation, torch.ones_like(deviation)))


@dataclass(frozen=True)
class Statistics:
    """Sums over rows of standardised features `x`, one class each.

    Counts `(classes,)`, the mean of each class `(classes, features)`, zero where there is none,
    and, for some heads, the mean of `x x'` over all rows, `(features, features)`.
    """

    counts: Tensor
    means: Tensor
    products: Tensor | None

    @classmethod
    def of(cls, rows: Tensor, labels: Tensor, num_classes: int, products: bool) -> Statistics:
        """Return the statistics of rows `(n, features)` with classes `(n,)`."""
        member = torch.nn.functional.one_hot(labels, num_classes).double()
        counts = member.sum(0)
        means = (member.T @ rows) / counts.clamp_min(1.0)[:, None]
        return cls(counts, means, rows.T @ rows / len(rows) if products else None)

    @property
    def num_rows(self) -> float:
        """Rows in all."""
        return float(self.counts.sum())


def pool(parts: Sequence[Statistics]) -> Statistics:
    """Return the statistics of all rows together."""
    counts = torch.stack([part.counts for part in parts]).sum(0)
    sums = sum((p.counts[:, None] * p.means for p in parts), torch.zeros_like(parts[0].means))
    total, products = float(counts.sum()), None
    for part in parts:
        if part.products is not None:
            share = part.products * (part.num_rows / total)
            products = share if products is None else products.add_(share)
    return Statistics(counts, sums / counts.clamp_min(1.0)[:, None], products)


def encode_statistics(statistics: Statistics, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return statistics as tensors: rows of the classes that have members, half of the products."""
    present = statistics.counts > 0
    tensors = {
        "control/counts": statistics.counts.to(torch.int32),
        "statistics/means": statistics.means[present].to(dtype),
    }
    if statistics.products is not None:
        rows, columns = torch.triu_indices(*statistics.products.shape)
        tensors["statistics/products"] = statistics.products[rows, columns].to(dtype)
    return tensors


def read_statistics(message: Message, num_classes: int, width: int, products: bool) -> Statistics:
    """Return a message's statistics; `MessageError` if they are of another form, or no rows."""
    counts = message.tensor("control/counts", torch.int32, (num_classes,)).double()
    if float(counts.min()) < 0 or float(counts.sum()) == 0:
        raise MessageError(f"{message.verb}: counts below zero, or of no rows")
    present = counts > 0
    like = {"means": torch.empty(int(present.sum()), width, dtype=torch.float64)}
    if products:
        like["products"] = torch.empty(width * (width + 1) // 2, dtype=torch.float64)
    found = message.expect("statistics", like)
    means = found["means"].new_zeros(num_classes, width)
    means[present] = found["means"]
    if not products:
        return Statistics(counts, means, None)
    square = found["products"].new_zeros(width, width)
    rows, columns = torch.triu_indices(width, width)
    square[rows, columns] = found["products"]
    square[columns, rows] = found["products"]
    if has_values(square) and float(square.trace()) < 0:  # codecs may have rounded a single one
        raise MessageError(f"{message.verb}: a sum of squares below zero")
    return Statistics(counts, means, square)
