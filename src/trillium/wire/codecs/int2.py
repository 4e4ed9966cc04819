"""Send floats as 2-bit integers with one fitted scale per block.

Four levels, ±1 and ±3 times the scale, of the uniform quantiser that Max (1960, "Quantizing for minimum
distortion") finds best for a Gaussian, with the scale fitted to each block by least squares.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from trillium.wire.codecs import Codec, blocks

START = 0.498  # the best scale for a Gaussian, in units of its standard deviation
NUM_FITS = 3  # more do not lower the error noticeably


class Int2(Codec, name="int2"):
    """Four levels in blocks of the last dimension: 2.25 bits per entry.

    What error feedback needs is that little of the tensor is left over. On a Gaussian these levels
    leave 12 % of the squared norm; the three levels -1, 0, 1 leave 19 % with the best scale and 45 %
    with the largest magnitude as scale. A least-squares scale leaves less than everything of any block,
    so error feedback converges. With stochastic rounding the outermost level is the largest magnitude,
    which makes it unbiased, but it may leave more than there was: not for error feedback.

    Attributes:
        block: entries that share a scale.
        rounding: `nearest`, or `stochastic`, which is unbiased.
    """

    row_wise: ClassVar[bool] = True

    block: int = Field(64, ge=1)
    rounding: blocks.Rounding = "nearest"

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
