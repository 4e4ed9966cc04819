"""Send floats in a narrower floating-point format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor

from trillium.wire.codecs import Codec
from trillium.wire.codecs.parts import expect_parts


class Cast(Codec, name="cast"):
    """Round to the nearest bfloat16 or float16.

    Attributes:
        dtype: `bfloat16` keeps float32's range with 8 bits of precision; `float16` has 11 bits of
            precision and ends at 65,504, so larger values are clamped to it.
    """

    row_wise: ClassVar[bool] = True

    dtype: Literal["bfloat16", "float16"] = "bfloat16"

    def encode(self, tensor: Tensor, key: int) -> dict[str, Tensor]:
        """Return the cast tensor as the only part."""
        dtype = torch.bfloat16 if self.dtype == "bfloat16" else torch.float16
        largest = torch.finfo(dtype).max
        return {"": tensor.clamp(-largest, largest).to(dtype)}

    def decode(self, parts: Mapping[str, Tensor], key: int) -> Tensor:
        """Return the tensor as float32."""
        expect_parts(parts, {""})
        if not parts[""].is_floating_point():  # a codec before this one decodes to float32
            raise ValueError(f"expected floats, found {parts[''].dtype}")
        return parts[""].float()
