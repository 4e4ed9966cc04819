"""The head by ridge regression: Fed3R (Fanì et al., 2024, arXiv 2406.01116), AFL (He et al., 2025).

`W = (G + lambda I)^-1 M` from `G = sum x x'` and `M = sum x y'` over the features `x` and the classes
`y` of all clients: the same head for every partition, to the last digits of float64.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from trillium.federation.side import Side
from trillium.frameworks.heads.closed_form import ClosedForm
from trillium.frameworks.heads.statistics import Solution, Statistics
from trillium.rng import generator

MOST_LEVERAGE = 0.95  # with fewer rows than features, what an example adds to its own logits


class Ridge(ClosedForm, name="ridge"):
    """Ridge regression on the classes, one-hot; the bias is not penalised.

    A client sends `d (d + 1) / 2 + d * its classes` numbers for `d` features: 0.2 MB in float16 for 384
    features and 77 classes. When the scale is chosen, the influence of an example on its own logits is
    taken as that of the mean example, the trace of the hat matrix over rows (generalised
    cross-validation, Golub, Heath and Wahba, 1979).

    Attributes:
        regularisation: lambda, as a multiple of the mean square of the features.
        project: features are first projected to so many by random signs from the run's seed, which
            bounds what is sent for wide models (2048 features are 4.2 MB in float16); none by
            default. The head is that of the full width again in the end.
    """

    regularisation: float = Field(default=1e-2, gt=0)
    project: int | None = Field(default=None, ge=1)

    sends_products = True

    def basis(self, side: Side, width: int) -> Tensor | None:
        """Return random signs over the root of their number, `(width, project)`."""
        if self.project is None or self.project >= width:
            return None
        draw = generator(side.seed, "projection")
        signs = torch.randint(2, (width, self.project), generator=draw) * 2 - 1
        basis: Tensor = signs.double() / self.project**0.5
        return basis

    def solve(self, statistics: Statistics, intercept: bool) -> Solution:
        """Return the minimum of `sum |W x + b - y|^2 + n lambda |W|^2`."""
        assert statistics.products is not None
        num_rows = statistics.num_rows
        share = statistics.counts / num_rows
        moments, products = share[:, None] * statistics.means, statistics.products
        mean = moments.sum(0)
        if intercept:  # which is then not penalised
            products = products - torch.outer(mean, mean)
            moments = moments - torch.outer(share, mean)
        ridge = self.regularisation * float(products.diagonal().mean())
        regularised = products + ridge * torch.eye(len(products), dtype=torch.float64)
        weight = torch.linalg.solve(regularised, moments.T).T
        bias = share - weight @ mean if intercept else torch.zeros_like(share)
        # A class without members gets no weight; the other logits sum to one, so one is above zero.
        bias[statistics.counts == 0] = -1.0
        degrees = float(torch.linalg.solve(regularised, products).trace()) + float(intercept)
        leverage = min(max(degrees / num_rows, 0.0), MOST_LEVERAGE)
        shrink = leverage / (1 - leverage)
        return Solution(weight, bias, 1 + shrink, torch.full_like(share, shrink))
