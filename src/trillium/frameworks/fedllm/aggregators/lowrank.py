"""Sums of products of LoRA's factors, without the dense matrix wherever the factors are smaller.

What clients train in a layer is `scale * B_k @ A_k`, and the mean of that is one product of two stacks,
`[B_1 ... B_C] @ [w_1 A_1; ...; w_C A_C]`, of rank `R`, the sum of the clients' ranks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trillium.federation.means import Contribution
from trillium.models.factors import Factors, LowRank, low_rank_of


@dataclass(frozen=True)
class Sent:
    """Both factors of one layer, `(r_k, in)` and `(out, r_k)` of each client, all in float64."""

    shares: list[float]
    a: list[Tensor]
    b: list[Tensor]

    def weighted(self, scale: float) -> list[Tensor]:
        """Return `scale * w_k * B_k`; the weight stands at one factor only, or it would be squared."""
        return [b * (scale * share) for b, share in zip(self.b, self.shares, strict=True)]


def products(contributions: Sequence[Contribution], factors: Sequence[Factors]) -> list[Factors]:
    """Return the layers of which clients sent both factors.

    Where only one factor crosses, the other one is common to all: the product is linear in what
    crosses, and the mean is exact. Clients that sent different factors of a layer are a
    `ValueError`.
    """
    found = []
    for layer in factors:
        sent = [(layer.a in c.tensors, layer.b in c.tensors) for c in contributions]
        forms = set(sent) - {(False, False)}
        if len(forms) > 1:
            raise ValueError(f"clients sent different factors of {layer.layer}")
        if forms == {(True, True)}:
            found.append(layer)
    return found


def without(contributions: Sequence[Contribution], layers: Sequence[Factors]) -> list[Contribution]:
    """Return the contributions without the factors of these layers: heads and all else."""
    names = {name for layer in layers for name in (layer.a, layer.b)}
    return [
        Contribution(c.client, c.weight, {n: t for n, t in c.tensors.items() if n not in names})
        for c in contributions
    ]


def sent(contributions: Sequence[Contribution], layer: Factors) -> Sent:
    """Return the factors of one layer of those clients that adapt it."""
    senders = [c for c in contributions if layer.a in c.tensors]
    total = math.fsum(c.weight for c in senders)
    return Sent(
        [c.weight / total for c in senders],
        [c.tensors[layer.a].double() for c in senders],
        [c.tensors[layer.b].double() for c in senders],
    )


def dense(lefts: Sequence[Tensor], rights: Sequence[Tensor]) -> Tensor:
    """Return `sum_k left_k @ right_k`, `(out, in)`."""
    total = lefts[0] @ rights[0]
    for left, right in zip(lefts[1:], rights[1:], strict=True):
        total.addmm_(left, right)
    return total


def low_rank(lefts: Sequence[Tensor], rights: Sequence[Tensor]) -> LowRank:
    """Return `sum_k left_k @ right_k` as two factors.

    Their rank is the sum of the ranks, and no more than `min(out, in)`: beyond that the matrix itself,
    beside an identity, is smaller than the stacks.
    """
    if not _is_low(lefts, rights):
        return low_rank_of(dense(lefts, rights))
    return LowRank(torch.cat(list(lefts), 1), torch.cat(list(rights), 0))


def thin_svd(lefts: Sequence[Tensor], rights: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the singular value decomposition of `sum_k left_k @ right_k`, exact to rounding.

    It is `U (out, n)`, the singular values in descending order and `V^T (n, in)`, without
    components that are rounding alone. Signs are such that the largest entry of each column of `U`
    is positive.

    QR of both stacks leaves a core of `R x R`, `R` the sum of the ranks. From `R >= min(out, in)`
    on the core is no smaller than the matrix, and the matrix itself is decomposed.
    """
    if _is_low(lefts, rights):
        left, left_core = torch.linalg.qr(torch.cat(list(lefts), 1))
        right, right_core = torch.linalg.qr(torch.cat(list(rights), 0).T)
        u, sigma, vt = torch.linalg.svd(left_core @ right_core.T)
        u, vt = left @ u, vt @ right.T
    else:
        u, sigma, vt = torch.linalg.svd(dense(lefts, rights), full_matrices=False)
    noise = torch.finfo(sigma.dtype).eps * max(len(u), vt.shape[1]) * float(sigma[0])
    num = int((sigma > noise).sum())
    u, sigma, vt = u[:, :num], sigma[:num], vt[:num]
    signs = u.gather(0, u.abs().argmax(0, keepdim=True)).sign().squeeze(0)
    return u * signs, sigma, vt * signs[:, None]


def balanced(u: Tensor, sigma: Tensor, vt: Tensor) -> LowRank:
    """Return `U diag(sigma) V^T` as two factors of equal norm: `U sqrt(sigma)`, `sqrt(sigma) V^T`."""
    root = sigma.sqrt()
    return LowRank(u * root, root[:, None] * vt)


def frobenius(lefts: Sequence[Tensor], rights: Sequence[Tensor]) -> float:
    """Return the Frobenius norm of `sum_k left_k @ right_k`, from Gram matrices where they are small.

    The square root of a sum of squares: below `1e-8` of the factors' norms it is rounding.
    """
    if not lefts:
        return 0.0
    if not _is_low(lefts, rights):
        return float(dense(lefts, rights).norm())
    left, right = torch.cat(list(lefts), 1), torch.cat(list(rights), 0)
    square = float(((left.T @ left) * (right @ right.T)).sum())
    return math.sqrt(max(square, 0.0))


def residual(found: Sent, scale: float) -> tuple[list[Tensor], list[Tensor]]:
    """Return factors of `scale * (sum_k w_k B_k A_k - mean B @ mean A)`; none where that is zero.

    It is `sum_k w_k (B_k - mean B)(A_k - mean A)`. As the left factors add up to zero, any constant may
    be taken from the right ones: with the first client's `A` there, its term vanishes, and the rank is
    no more than that of the others together, `(C - 1) r`.
    """
    if all(torch.equal(b, found.b[0]) for b in found.b):
        return [], []  # their mean would be off by rounding, and that would be sent as a residual
    mean = torch.zeros_like(found.b[0])
    for b, share in zip(found.b, found.shares, strict=True):
        mean.add_(b, alpha=share)
    lefts = [scale * share * (b - mean) for b, share in zip(found.b, found.shares, strict=True)]
    rights = [a - found.a[0] for a in found.a]
    pairs = [(x, y) for x, y in zip(lefts, rights, strict=True) if bool(x.any()) and bool(y.any())]
    return [x for x, _ in pairs], [y for _, y in pairs]


def _is_low(lefts: Sequence[Tensor], rights: Sequence[Tensor]) -> bool:
    rank = sum(left.shape[1] for left in lefts)
    return rank < min(lefts[0].shape[0], rights[0].shape[1])
