"""What the robust rules share: contributions as rows of one matrix, a few columns at a time.

A client is its whole payload, all tensors flattened and put behind one another: an attacker who may
not stand out there may not stand out in any factor of LoRA either.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from trillium.federation.means import Contribution
from trillium.wire.kinds import Tensors

_COLUMNS = 2**15


def common_names(contributions: Sequence[Contribution]) -> list[str]:
    """Return the names that all clients sent, sorted; `ValueError` if one lacks what others have."""
    names = contributions[0].tensors.keys()
    for contribution in contributions:
        missing = names ^ contribution.tensors.keys()
        if missing:
            raise ValueError(
                f"{contributions[0].client} and {contribution.client} sent different tensors "
                f"({', '.join(sorted(missing)[:3])}), which this aggregator cannot compare"
            )
    return sorted(names)


def columns(contributions: Sequence[Contribution], name: str) -> Iterator[Tensor]:
    """Yield the clients' entries of one tensor as `(clients, entries)`, a piece at a time."""
    rows = [c.tensors[name].detach().reshape(-1) for c in contributions]
    for start in range(0, max(len(rows[0]), 1), _COLUMNS):  # one piece of an empty tensor, too
        yield torch.stack([row[start : start + _COLUMNS] for row in rows])


def ordered(piece: Tensor) -> Tensor:
    """Return `(entries, clients)` with the clients' values of each entry in ascending order.

    NumPy sorts short rows more than ten times as fast as PyTorch does on a CPU.
    """
    wide = piece if piece.dtype == torch.float64 else piece.float()
    return torch.from_numpy(np.sort(wide.T.contiguous().cpu().numpy(), axis=1)).to(piece.device)


def coordinate_wise(
    contributions: Sequence[Contribution], like: Tensors, reduce: Callable[[Tensor], Tensor]
) -> Tensors:
    """Return a function of the clients' values of each coordinate, in shapes and dtypes of `like`.

    `reduce` turns `(entries, clients)`, ascending in each row, into `(entries,)`.
    """
    result = {}
    for name in common_names(contributions):
        pieces = [reduce(ordered(piece)) for piece in columns(contributions, name)]
        result[name] = torch.cat(pieces).view(like[name].shape).to(like[name].dtype)
    return result


def middle(values: Tensor, num_trimmed: int) -> Tensor:
    """Return the mean of ascending values without so many at each end, in float64."""
    return values[:, num_trimmed : values.shape[1] - num_trimmed].double().mean(1)


def median(values: Tensor) -> Tensor:
    """Return the median of ascending values; the mean of the two in the middle of an even number."""
    return middle(values, (values.shape[1] - 1) // 2)


def gram(contributions: Sequence[Contribution]) -> Tensor:
    """Return the inner products of the clients' payloads `(clients, clients)`, float64.

    They are taken around the coordinate-wise median. Distances between clients follow from them,
    and keep their digits for the majority, however far the others are out.
    """
    num = len(contributions)
    total = torch.zeros(num, num, dtype=torch.float64)
    for name in common_names(contributions):
        for piece in columns(contributions, name):
            centred = piece.double() - median(ordered(piece))
            total.addmm_(centred, centred.T)
    return total


def norm(contribution: Contribution) -> float:
    """Return the l2 norm of all that a client sent."""
    norms = [
        float(torch.linalg.vector_norm(t, dtype=torch.float64))
        for t in contribution.tensors.values()
    ]
    return math.hypot(*norms)
