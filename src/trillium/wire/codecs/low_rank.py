"""Send matrices as two thin factors.

PowerSGD (Vogels et al., 2019, arXiv 1905.13727), without its warm start: a codec has no memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from trillium.wire.codecs import Codec
from trillium.wire.codecs.blocks import LARGEST
from trillium.wire.codecs.parts import expect_parts, read_shape, shape_part, vector_of_floats
from trillium.wire.codecs.seeded import signs


class LowRank(Codec, name="low_rank"):
    """The orthogonal projection of a matrix onto its leading columns, found by subspace iteration.

    A tensor `(…, n)` is read as a matrix of `n` columns. Vectors, and matrices for which the factors
    would not be smaller, pass untouched. Both factors are in the main part, so that a later codec
    compresses them too. The other side multiplies them, in float64: a matrix product, whose order of
    summation is the platform's, so that the last bit of a float32 may differ between machines.

    Attributes:
        rank: columns of the left factor.
        iterations: how often the matrix and its transpose are applied to a random start; more come
            nearer to the truncated singular value decomposition.
    """

    matrices: ClassVar[bool] = True
    for_changes: ClassVar[bool] = True

    rank: int = Field(4, ge=1)
    iterations: int = Field(2, ge=1)

    def encode(self, tensor: Tensor, key: int) -> dict[str, Tensor]:
        """Return the factors `(rank · (m + n),)` float32, left one first, and the shape."""
        if not self._saves(tuple(tensor.shape)):
            return {"": tensor}
        columns = tensor.shape[-1]
        matrix = tensor.detach().double().reshape(-1, columns)
        largest = matrix.abs().amax()
        matrix = matrix / torch.where(largest > 0, largest, 1.0)
        right = signs(key, columns * self.rank).to(matrix).view(columns, self.rank)
        for _ in range(self.iterations):
            left: Tensor = torch.linalg.qr(matrix @ right).Q
            right = matrix.T @ left
        # Each factor takes the root of the scale: alone, one might exceed the largest float.
        factors = torch.cat([left.T.flatten(), right.T.flatten()]) * largest.sqrt()
        return {"": factors.float(), "shape": shape_part(tensor)}

    def decode(self, parts: Mapping[str, Tensor], key: int) -> Tensor:
        """Return the tensor as float32."""
        expect_parts(parts, {""} | parts.keys() & {"shape"})
        if "shape" not in parts:
            if not parts[""].is_floating_point() or self._saves(tuple(parts[""].shape)):
                raise ValueError(f"{parts[''].dtype} {tuple(parts[''].shape)} without factors")
            return parts[""].float()
        shape = read_shape(parts["shape"])
        if not self._saves(shape):
            raise ValueError(f"factors of a tensor {shape}")
        rows, columns = math.prod(shape[:-1]), shape[-1]
        factors = vector_of_floats(parts[""], self.rank * (rows + columns)).double()
        left, right = torch.split(factors, [self.rank * rows, self.rank * columns])
        matrix: Tensor = left.view(self.rank, rows).T @ right.view(self.rank, columns)
        return matrix.clamp(-LARGEST, LARGEST).float().reshape(shape)

    def _saves(self, shape: tuple[int, ...]) -> bool:
        if len(shape) < 2:
            return False
        rows, columns = math.prod(shape[:-1]), shape[-1]
        return self.rank * (rows + columns) < rows * columns
