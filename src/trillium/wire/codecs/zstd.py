"""Compress bytes without loss (Zstandard, RFC 8878)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Final, get_args

import torch
import zstandard
from pydantic import Field
from torch import Tensor

from trillium.wire.codecs import Codec
from trillium.wire.codecs.parts import expect_parts, most_of, read_shape
from trillium.wire.kinds import DTYPES, Kind

_DTYPES: Final = tuple(DTYPES.values())
_OVERHEAD: Final = 128  # what the further part takes in the header of the message, at most


class Zstd(Codec, name="zstd"):
    """Zstandard over the bytes of a tensor of any dtype; usually the last codec of a stack.

    The first bytes of all entries come first, then the second ones, and so on: the exponents of floats
    resemble each other, their last bits do not. A tensor that would not shrink is sent as it is.

    Attributes:
        level: compression level, from 1 (fastest) to 22 (smallest).
        kinds: which kinds of tensors it encodes; the others pass untouched. All but control by default.
    """

    lossless: ClassVar[bool] = True
    any_dtype: ClassVar[bool] = True

    level: int = Field(3, ge=1, le=22)
    kinds: tuple[Kind, ...] = tuple(
        kind for kind in get_args(Kind) if kind not in ("control", "sums")
    )

    def encode(self, tensor: Tensor, key: int) -> dict[str, Tensor]:
        """Return the compressed bytes, and dtype and shape as int64."""
        if tensor.nbytes <= _OVERHEAD:
            return {"": tensor}
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        planes = raw.view(-1, tensor.element_size()).T.contiguous()
        data = zstandard.ZstdCompressor(level=self.level).compress(planes.numpy().data)
        if len(data) + _OVERHEAD >= tensor.nbytes:
            return {"": tensor}
        form = torch.tensor([_DTYPES.index(tensor.dtype), *tensor.shape], dtype=torch.int64)
        return {"": torch.frombuffer(bytearray(data), dtype=torch.uint8), "form": form}

    def decode(self, parts: Mapping[str, Tensor], key: int) -> Tensor:
        """Return the tensor, of the dtype and shape that was encoded."""
        expect_parts(parts, {""} | parts.keys() & {"form"})
        if "form" not in parts:
            return parts[""]
        dtype, shape = _read_form(parts["form"], most_of(parts))
        if parts[""].dtype != torch.uint8 or parts[""].dim() != 1:
            raise ValueError(f"compressed bytes that are {parts[''].dtype}")
        planes = _decompress(parts[""], math.prod(shape) * dtype.itemsize)
        raw = planes.view(dtype.itemsize, -1).T.contiguous().reshape(-1)
        # A byte that is neither 0 nor 1 is no bool.
        return (raw != 0 if dtype == torch.bool else raw.view(dtype)).reshape(shape)


def _read_form(part: Tensor, most: int) -> tuple[torch.dtype, tuple[int, ...]]:
    if part.dtype != torch.int64 or part.dim() != 1 or not len(part):
        raise ValueError(f"dtype and shape that are {part.dtype} {tuple(part.shape)}")
    index = int(part[0])
    if not 0 <= index < len(_DTYPES):
        raise ValueError(f"dtype {index}")
    return _DTYPES[index], read_shape(part[1:], most)


def _decompress(part: Tensor, size: int) -> Tensor:
    data = part.cpu().numpy().tobytes()
    try:
        # The size that the frame claims is what the library allocates.
        if zstandard.frame_content_size(data) != size:
            raise ValueError(f"the compressed bytes are not {size} bytes")
        found = zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ValueError(f"unreadable compressed bytes: {error}") from error
    return torch.frombuffer(bytearray(found), dtype=torch.uint8)
