"""Send floats as 8-, 4- or 2-bit integers with one scale per block.

Int8 as in Dettmers et al. (2022, arXiv 2110.02861), int4 as in block-wise quantisation of weights
(Dettmers and Zettlemoyer, 2023, arXiv 2212.09720). Int2 has four levels, ±1 and ±3 times the scale, of
the uniform quantiser that Max (1960, "Quantizing for minimum distortion") finds best for a Gaussian,
with the scale fitted to each block by least squares.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from trillium.wire.codecs import Codec, blocks
from trillium.wire.codecs.parts import expect_parts

START = 0.498  # the best scale for a Gaussian, in units of its standard deviation
NUM_FITS = 3  # more do not lower the error noticeably


class _Integers(Codec):
    """Integers in blocks of the last dimension.

    Attributes:
        block: entries that share a scale.
        rounding: `nearest`, or `stochastic`, which is unbiased.
    """

    row_wise: ClassVar[bool] = True

    block: int = Field(64, ge=1)
    rounding: blocks.Rounding = "nearest"


class Int8(_Integers, name="int8"):
    """Symmetric absolute-maximum quantisation in blocks of the last dimension: 8.25 bits per entry.

    The error of an entry is at most half a step (a whole one if rounding is stochastic), where a step
    is the largest magnitude of the block over 127, rounded up to bfloat16.
    """

    def encode(self, tensor: Tensor, key: int) -> dict[str, Tensor]:
        """Return int8 values of the tensor's shape and bfloat16 scales `(…, blocks)`."""
        units, scale = blocks.quantise(tensor, 127, self.block, self.rounding, key)
        width = tensor.shape[-1] if tensor.dim() else 1
        values = units.to(torch.int8).flatten(1)[:, :width].reshape(tensor.shape)
        return {"": values, "scale": blocks.scale_part(tensor, scale)}

    def decode(self, parts: Mapping[str, Tensor], key: int) -> Tensor:
        """Return the tensor as float32."""
        expect_parts(parts, {"", "scale"})
        if parts[""].dtype != torch.int8:
            raise ValueError(f"expected int8, found {parts[''].dtype}")
        return blocks.multiply(parts[""], blocks.spread(parts[""], parts["scale"], self.block))


class Int4(_Integers, name="int4"):
    """Symmetric absolute-maximum quantisation in blocks of the last dimension: 4.25 bits per entry.

    Two entries share a byte. The error of an entry is at most half a step (a whole one if rounding is
    stochastic), where a step is the largest magnitude of the block over 7, rounded up to bfloat16.
    """

    def encode(self, tensor: Tensor, key: int) -> dict[str, Tensor]:
        """Return codes `(…, ceil(n / 2))` uint8 and bfloat16 scales `(…, blocks)`."""
        units, scale = blocks.quantise(tensor, 7, self.block, self.rounding, key)
        return blocks.write(tensor, units + 7, scale, bits=4)

    def decode(self, parts: Mapping[str, Tensor], key: int) -> Tensor:
        """Return the tensor as float32."""
        codes, scale = blocks.read(parts, 4, self.block)
        return blocks.multiply(codes.float() - 7, scale)


class Int2(_Integers, name="int2"):
    """Four levels in blocks of the last dimension: 2.25 bits per entry.

    What error feedback needs is that little of the tensor is left over. On a Gaussian these levels
    leave 12 % of the squared norm; the three levels -1, 0, 1 leave 19 % with the best scale and 45 %
    with the largest magnitude as scale. A least-squares scale leaves less than everything of any block,
    so error feedback converges. With stochastic rounding the outermost level is the largest magnitude,
    which makes it unbiased, but it may leave more than there was: not for error feedback.
    """

    @property
    def expands(self) -> bool:
        """Whether the error may exceed the tensor: with stochastic rounding."""
        return self.rounding == "stochastic"

    def encode(self, tensor: Tensor, key: int) -> dict[str, Tensor]:
        """Return codes `(…, ceil(n / 4))` uint8 and bfloat16 scales `(…, blocks)`."""
        values = blocks.to_blocks(tensor, self.block)
        if self.rounding == "nearest":
            scale = blocks.round_scale(self._fit(tensor, values))
        else:
            scale = blocks.raise_scale(blocks.largest(values) / 3)
        places = (blocks.divide(values, scale) + 3) / 2  # 0, 1, 2, 3 are the levels
        codes = blocks.round_units(places.clamp(0, 3), self.rounding, key).clamp(0, 3)
        return blocks.write(tensor, codes, scale, bits=2)

    def decode(self, parts: Mapping[str, Tensor], key: int) -> Tensor:
        """Return the tensor as float32."""
        codes, scale = blocks.read(parts, 2, self.block)
        return blocks.multiply(2 * codes.float() - 3, scale)

    def _fit(self, tensor: Tensor, values: Tensor) -> Tensor:
        """Fit alternately: the nearest levels, and the best scale for these."""
        lengths = blocks.block_lengths(tensor, self.block)[:, None]
        largest = blocks.largest(values)
        sizes = blocks.divide(values.abs(), largest)  # at most 1, so that no square overflows
        real = torch.arange(self.block, device=values.device) < lengths
        scale = START * (sizes.square().sum(-1, keepdim=True) / lengths).sqrt()
        for _ in range(NUM_FITS):
            levels = torch.where(sizes > 2 * scale, 3.0, 1.0) * real
            scale = (sizes * levels).sum(-1, keepdim=True) / levels.square().sum(-1, keepdim=True)
        return scale * largest
