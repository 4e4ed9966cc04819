"""How far the mean of LoRA's factors is from the mean of their products, measured as clients answer.

`sum_k w_k B_k A_k` is what the clients have learnt; `(sum_k w_k B_k)(sum_k w_k A_k)` is what federated
averaging makes of it. Neither product is formed: both are looked at through a few random directions
(Johnson and Lindenstrauss, 1984), so memory does not grow with the number of clients.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trillium.federation.means import RunningMean
from trillium.models.factors import Factors
from trillium.rng import generator
from trillium.wire.kinds import Tensors, has_values

NUM_DIRECTIONS = 16


class ProductSketch:
    """The relative error of averaging factors, in the Frobenius norm over all layers."""

    def __init__(self, factors: Sequence[Factors], seed: int) -> None:
        self._factors, self._seed = factors, seed
        self._means = RunningMean()  # in which the order of the clients does not show

    def add(self, weight: float, tensors: Tensors) -> None:
        """Take what one client holds after training; a layer of which a factor lacks is left out."""
        for layer in self._factors:
            if layer.a in tensors and layer.b in tensors and has_values(tensors[layer.a]):
                a, b = tensors[layer.a].double(), tensors[layer.b].double() * layer.scale
                product = b @ (a @ self._directions(layer, a))
                for what, tensor in (("a", a), ("b", b), ("product", product)):
                    self._means.add(f"{layer.layer}/{what}", tensor, weight)

    def _directions(self, layer: Factors, a: Tensor) -> Tensor:
        draw = generator(self._seed, "product sketch", layer.layer)
        signs = torch.randint(0, 2, (a.shape[1], NUM_DIRECTIONS), generator=draw) * 2 - 1
        return signs.to(a)

    def error(self) -> float:
        """Return the error; 0 where nothing was added or all products are zero."""
        off, size, means = 0.0, 0.0, self._means.result()
        for layer in self._factors:
            if f"{layer.layer}/a" in means:
                mean_a, mean_b, product = (
                    means[f"{layer.layer}/{what}"] for what in ("a", "b", "product")
                )
                averaged = mean_b @ (mean_a @ self._directions(layer, mean_a))
                off += float((averaged - product).square().sum())
                size += float(product.square().sum())
        return float((off / size) ** 0.5) if size > 0 else 0.0
