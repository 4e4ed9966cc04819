"""What the block quantisers share: blocks along the last dimension, bfloat16 scales, packed bits.

A tensor `(…, n)` becomes codes of 8, 4, 2 or 1 bits, several to a byte, `(…, ceil(n · bits / 8))`, and
one bfloat16 scale for each block, `(…, ceil(n / block))`. A scalar is a row of one entry. The last
block of a row may be short. A scale keeps float32's range, so that the smallest update has one; every
code is multiplied with the scale as it is sent, which is exact in float32 and the same everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, Literal

import torch
from torch import Tensor
from torch.nn import functional

from trillium.wire.codecs.parts import expect_parts
from trillium.wire.codecs.seeded import noise

Rounding = Literal["nearest", "stochastic"]
LARGEST: Final = torch.finfo(torch.float32).max
_LARGEST_SCALE: Final = torch.finfo(torch.bfloat16).max


def to_blocks(tensor: Tensor, block: int) -> Tensor:
    """Return the entries as float32 `(rows, blocks, block)`, short blocks filled up with zeros."""
    width = tensor.shape[-1] if tensor.dim() else 1
    rows = tensor.detach().float().reshape(math.prod(tensor.shape[:-1]), width)
    return functional.pad(rows, (0, -width % block)).view(len(rows), -(-width // block), block)


def block_lengths(tensor: Tensor, block: int) -> Tensor:
    """Return how many entries each block of a row has, int64 `(blocks,)`."""
    width = tensor.shape[-1] if tensor.dim() else 1
    starts = torch.arange(0, width, block, device=tensor.device)
    return (width - starts).clamp(max=block)


def largest(blocks: Tensor) -> Tensor:
    """Return the largest magnitude of each block, `(rows, blocks, 1)`."""
    return blocks.abs().amax(dim=-1, keepdim=True) if blocks.numel() else blocks[..., :1]


def round_scale(scale: Tensor) -> Tensor:
    """Return the nearest bfloat16 to a scale that is not negative, as float32."""
    return scale.clamp(max=_LARGEST_SCALE).bfloat16().float()


def raise_scale(scale: Tensor) -> Tensor:
    """Return the next bfloat16 from a scale upwards, as float32.

    A scale that was rounded down would cut off the largest entries, and stochastic rounding would no
    longer be unbiased.
    """
    bits = (scale.contiguous().view(torch.int32) + 0xFFFF) & ~0xFFFF
    return bits.view(torch.float32).clamp(max=_LARGEST_SCALE)


def divide(blocks: Tensor, scale: Tensor) -> Tensor:
    """Return blocks in units of their scales; a block of scale zero becomes zeros."""
    return torch.where(scale > 0, blocks / torch.where(scale > 0, scale, 1.0), 0.0)


def round_units(units: Tensor, rounding: Rounding, key: int) -> Tensor:
    """Round to whole numbers, to the nearest or up with the probability of the fraction."""
    if rounding == "nearest":
        return units.round()
    return (units + noise(key, units)).floor()


def quantise(
    tensor: Tensor, levels: int, block: int, rounding: Rounding, key: int
) -> tuple[Tensor, Tensor]:
    """Return whole numbers from -levels to levels, `(rows, blocks, block)`, and their scales.

    The largest magnitude of a block is its last level (symmetric absolute-maximum quantisation).
    """
    blocks = to_blocks(tensor, block)
    scale = raise_scale(largest(blocks) / levels)
    return round_units(divide(blocks, scale), rounding, key).clamp(-levels, levels), scale


def write(tensor: Tensor, codes: Tensor, scale: Tensor, bits: int) -> dict[str, Tensor]:
    """Return the parts for codes from 0 to `2^bits - 1`, `(rows, blocks, block)`, and their scales."""
    lead, width = tensor.shape[:-1], tensor.shape[-1] if tensor.dim() else 1
    flat = codes.to(torch.uint8).flatten(1)[:, :width]
    per_byte = 8 // bits
    padded = functional.pad(flat, (0, -width % per_byte))
    padded = padded.view(len(flat), -(-width // per_byte), per_byte)
    packed = padded[..., 0].clone()
    for place in range(1, per_byte):
        packed |= padded[..., place] << (bits * place)
    shape = (*lead, packed.shape[-1]) if tensor.dim() else ()
    parts = {"": packed.reshape(shape), "scale": scale_part(tensor, scale)}
    if tensor.dim() and width % per_byte:
        parts["unused"] = torch.tensor(-width % per_byte, dtype=torch.uint8)
    return parts


def scale_part(tensor: Tensor, scale: Tensor) -> Tensor:
    """Return scales `(rows, blocks, 1)` as they are sent: bfloat16, with the tensor's leading shape."""
    return scale.reshape(*tensor.shape[:-1], scale.shape[1]).bfloat16()


def read(parts: Mapping[str, Tensor], bits: int, block: int) -> tuple[Tensor, Tensor]:
    """Return the codes, uint8 of the tensor's shape, and the scale of each entry (see `spread`)."""
    per_byte = 8 // bits
    expect_parts(parts, {"", "scale"} | parts.keys() & {"unused"})
    packed = parts[""]
    if packed.dtype != torch.uint8:
        raise ValueError(f"codes of {bits} bits in {packed.dtype}")
    unused = _read_unused(parts["unused"], packed, per_byte) if "unused" in parts else 0
    mask = (1 << bits) - 1
    places = [(packed >> (bits * place)) & mask for place in range(per_byte)]
    if not packed.dim():
        return places[0], spread(places[0], parts["scale"], block)
    width = packed.shape[-1] * per_byte
    codes = torch.stack(places, dim=-1).reshape(*packed.shape[:-1], width)[..., : width - unused]
    return codes, spread(codes, parts["scale"], block)


def _read_unused(part: Tensor, packed: Tensor, per_byte: int) -> int:
    unused = int(part) if part.dtype == torch.uint8 and part.shape == () else 0
    if not 0 < unused < per_byte or not packed.dim() or not packed.shape[-1]:
        raise ValueError(f"{unused} unused places in a byte of {per_byte}")
    return unused


def spread(codes: Tensor, scale: Tensor, block: int) -> Tensor:
    """Return the scale of each code as float32, in their shape; `ValueError` if they do not fit."""
    width = codes.shape[-1] if codes.dim() else 1
    wanted = (*codes.shape[:-1], -(-width // block))
    if scale.dtype != torch.bfloat16 or scale.shape != wanted:
        raise ValueError(f"scales {scale.dtype} {tuple(scale.shape)}, expected bfloat16 {wanted}")
    return scale.float().repeat_interleave(block, dim=-1)[..., :width].reshape(codes.shape)


def multiply(units: Tensor, scale: Tensor) -> Tensor:
    """Return units times scale; what a raised scale lifts above the largest float comes back to it."""
    return (units.float() * scale).clamp(-LARGEST, LARGEST)
