"""Send floats as 8-bit integers with one scale per row."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from trillium.codecs import Codec

LEVELS = 127  # symmetric: -127 … 127


class Int8(Codec, name="int8"):
    """Symmetric absolute-maximum quantisation along the last dimension, rounding to nearest.

    The error of an entry is at most half a step, `max|row| / 254`. A row's scale is sent as float32.
    """

    def encode(self, tensor: Tensor) -> dict[str, Tensor]:
        """Return int8 values of the tensor's shape and scales `(…, 1)`."""
        values = tensor.float()
        rows = values if values.dim() else values[None]
        scale = rows.abs().amax(dim=-1, keepdim=True) / LEVELS if rows.numel() else rows[..., :1]
        # A row of zeros has scale zero; dividing by one instead keeps it zero.
        quantised = (rows / torch.where(scale > 0, scale, 1.0)).round().clamp(-LEVELS, LEVELS)
        return {"": quantised.to(torch.int8).reshape(tensor.shape), "scale": scale}

    def decode(self, parts: Mapping[str, Tensor]) -> Tensor:
        """Return the tensor as float32."""
        if parts.keys() != {"", "scale"}:
            raise ValueError(f"unexpected or missing parts in {sorted(parts)[:3]}")
        quantised, scale = parts[""], parts["scale"]
        rows = quantised if quantised.dim() else quantised[None]
        wanted = (
            (*rows.shape[:-1], min(1, rows.shape[-1]))
            if rows.numel() == 0
            else (*rows.shape[:-1], 1)
        )
        if quantised.dtype != torch.int8 or scale.dtype != torch.float32 or scale.shape != wanted:
            raise ValueError(f"int8 values {tuple(rows.shape)} with scales {tuple(scale.shape)}")
        # The largest floats would be rounded up to infinity.
        largest = torch.finfo(torch.float32).max
        return (rows.float() * scale).clamp(-largest, largest).reshape(quantised.shape)
