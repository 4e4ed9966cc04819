"""Send floats as 4-bit integers with one scale per block, as in block-wise quantisation of weights
(Dettmers and Zettlemoyer, 2023, arXiv 2212.09720).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from trillium.wire.codecs import Codec, blocks

LEVELS = 7  # symmetric: -7 … 7


class Int4(Codec, name="int4"):
    """Symmetric absolute-maximum quantisation in blocks of the last dimension: 4.25 bits per entry.

    Two entries share a byte. The error of an entry is at most half a step (a whole one if rounding is
    stochastic), where a step is the largest magnitude of the block over 7, rounded up to bfloat16.

    Attributes:
        block: entries that share a scale.
        rounding: `nearest`, or `stochastic`, which is unbiased.
    """

    row_wise: ClassVar[bool] = True

    block: int = Field(64, ge=1)
    rounding: blocks.Rounding = "nearest"

    def encode(self, tensor: Tensor, key: int) -> dict[str, Tensor]:
        """Return codes `(…, ceil(n / 2))` uint8 and bfloat16 scales `(…, blocks)`."""
        units, scale = blocks.quantise(tensor, LEVELS, self.block, self.rounding, key)
        return blocks.write(tensor, units + LEVELS, scale, bits=4)

    def decode(self, parts: Mapping[str, Tensor], key: int) -> Tensor:
        """Return the tensor as float32."""
        codes, scale = blocks.read(parts, 4, self.block)
        return blocks.multiply(codes.float() - LEVELS, scale)
