"""Distance correlation between activations and inputs.

Székely et al. (2007), as a measure of leakage in NoPeek (Vepakomma et al., 2020, arXiv 2008.09161).
"""

from __future__ import annotations

import torch
from torch import Tensor

from trillium.rng import generator

MOST = 1024  # rows that are compared, each with each


def distance_correlation(left: Tensor, right: Tensor, seed: int = 0) -> float:
    """Return the distance correlation of rows `(n, …)`, 0 for independent ones and 1 for equal ones.

    Of many rows, some are drawn. On few rows of high dimension it is above 0 also where there is no
    dependence: compare figures of the same number of rows.

    Args:
        left, right: rows that belong together.
    """
    if len(left) > MOST:
        chosen = torch.randperm(len(left), generator=generator(seed, "correlation"))[:MOST]
        left, right = left[chosen.to(left.device)], right[chosen.to(right.device)]
    first, second = _centred(left), _centred(right)
    covariance = (first * second).mean().clamp(min=0)
    scale = (first.square().mean() * second.square().mean()).sqrt()
    return float((covariance / scale).sqrt()) if float(scale) > 0 else 0.0


def _centred(rows: Tensor) -> Tensor:
    """Return the matrix of distances, without the means of its rows and columns."""
    flat = rows.double().flatten(1)
    distances = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist")
    return distances - distances.mean(0) - distances.mean(1, keepdim=True) + distances.mean()
