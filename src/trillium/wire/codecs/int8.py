"""Send floats as 8-bit integers with one scale per block (Dettmers et al., 2022, arXiv 2110.02861)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from trillium.wire.codecs import Codec, blocks
from trillium.wire.codecs.parts import expect_parts

LEVELS = 127  # symmetric: -127 … 127


class Int8(Codec, name="int8"):
    """Symmetric absolute-maximum quantisation in blocks of the last dimension: 8.25 bits per entry.

    The error of an entry is at most half a step (a whole one if rounding is stochastic), where a step
    is the largest magnitude of the block over 127, rounded up to bfloat16.

    Attributes:
        block: entries that share a scale.
        rounding: `nearest`, or `stochastic`, which is unbiased.
    """

    row_wise: ClassVar[bool] = True

    block: int = Field(64, ge=1)
    rounding: blocks.Rounding = "nearest"

    def encode(self, tensor: Tensor, key: int) -> dict[str, Tensor]:
        """Return int8 values of the tensor's shape and bfloat16 scales `(…, blocks)`."""
        units, scale = blocks.quantise(tensor, LEVELS, self.block, self.rounding, key)
        width = tensor.shape[-1] if tensor.dim() else 1
        values = units.to(torch.int8).flatten(1)[:, :width].reshape(tensor.shape)
        return {"": values, "scale": blocks.scale_part(tensor, scale)}

    def decode(self, parts: Mapping[str, Tensor], key: int) -> Tensor:
        """Return the tensor as float32."""
        expect_parts(parts, {"", "scale"})
        if parts[""].dtype != torch.int8:
            raise ValueError(f"expected int8, found {parts[''].dtype}")
        return blocks.multiply(parts[""], blocks.spread(parts[""], parts["scale"], self.block))
