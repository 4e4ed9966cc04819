"""Rotate at random before quantisation, so that no entry stands out.

Suresh et al. (2017, "Distributed mean estimation with limited communication", arXiv 1611.00429).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field, field_validator
from torch import Tensor

from trillium.wire.codecs import Codec
from trillium.wire.codecs.parts import expect_parts
from trillium.wire.codecs.rotation import rotate, rotate_back


class Hadamard(Codec, name="hadamard"):
    """A randomised Walsh-Hadamard rotation of the last dimension, in blocks; saves nothing by itself.

    It comes before `int4`, `int2` or `sign`: an outlier is spread over its block, and all entries
    become nearly Gaussian. The signs are the same for all clients of a round, so that rotated tensors
    can be summed. The rotation is orthonormal: the error of a later codec keeps its norm.

    Attributes:
        block: length of what is rotated together, a power of two; the rest of a row is rotated in
            smaller powers of two.
    """

    row_wise: ClassVar[bool] = True

    block: int = Field(256, ge=2)

    @field_validator("block")
    @classmethod
    def _power_of_two(cls, block: int) -> int:
        if block & (block - 1):
            raise ValueError(f"{block} is no power of two; write {1 << (block.bit_length() - 1)}")
        return block

    def encode(self, tensor: Tensor, key: int) -> dict[str, Tensor]:
        """Return the rotated tensor, float32 of the same shape."""
        rows = tensor.detach().float()
        return {"": rotate(rows, self.block, key) if rows.dim() else rows}

    def decode(self, parts: Mapping[str, Tensor], key: int) -> Tensor:
        """Return the tensor as float32."""
        expect_parts(parts, {""})
        if not parts[""].is_floating_point():
            raise ValueError(f"expected floats, found {parts[''].dtype}")
        rows = parts[""].float()
        return rotate_back(rows, self.block, key) if rows.dim() else rows
