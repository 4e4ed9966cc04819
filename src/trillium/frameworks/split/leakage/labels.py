"""Guess labels from the size of gradients that cross the cut.

Label Leakage and Protection in Two-party Split Learning (Li et al., 2021, arXiv 2102.08504): the
gradient of an example is the larger the more its label surprises the model, so that rare labels show.
"""

from __future__ import annotations

import torch
from torch import Tensor


def norm_auc(norms: Tensor, labels: Tensor) -> float:
    """Return how well gradient norms tell classes apart, from 0.5 (not at all) to 1.

    The mean over classes of the area under the curve, class against the others; either direction
    counts, because who guesses can turn the guess around.

    Args:
        norms: of each example's gradient `(examples,)`.
        labels: classes `(examples,)`.
    """
    found = []
    for label in torch.unique(labels):
        inside = labels == label
        if 0 < int(inside.sum()) < len(labels):
            area = _auc(norms[inside], norms[~inside])
            found.append(max(area, 1 - area))
    return sum(found) / len(found) if found else 0.5


def _auc(positive: Tensor, negative: Tensor) -> float:
    """Return the probability that one of `positive` is above one of `negative`, ties for a half."""
    gaps = positive[:, None] - negative
    return float(((gaps > 0).double() + 0.5 * (gaps == 0)).mean())
