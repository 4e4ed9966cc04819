"""Sorted indices in few bits: Golomb-Rice codes of the gaps between them.

A gap of `g` skipped places is `g >> b` zeros and a one, and `b` bits. The sender picks the `b` that
takes the fewest bits, which is within a few per cent of the entropy for randomly placed indices;
`b = 0` is the plain bitmap. That is why no other form is offered: 16 or 32 bits for each index do not
take less. Sparse ternary compression (Sattler et al., 2019, arXiv 1903.02891) sends its indices so.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def pack_indices(indices: Tensor) -> Tensor:
    """Return sorted, different indices as bytes: `b`, the ones and zeros, the bits of the rests."""
    if not len(indices):
        return torch.zeros(0, dtype=torch.uint8)
    gaps = np.diff(indices.cpu().numpy(), prepend=-1) - 1
    costs = [
        int((gaps >> b).sum()) + len(gaps) * b for b in range(int(gaps.max()).bit_length() + 1)
    ]
    b = int(np.argmin(costs))
    ends = np.cumsum((gaps >> b) + 1) - 1
    unary = np.zeros(ends[-1] + 1, dtype=np.uint8)
    unary[ends] = 1
    rests = (gaps[:, None] >> np.arange(b)) & 1
    packed = [
        np.array([b], dtype=np.uint8),
        np.packbits(unary),
        np.packbits(rests.astype(np.uint8)),
    ]
    return torch.from_numpy(np.concatenate(packed))


def unpack_indices(part: Tensor, count: int, total: int) -> Tensor:
    """Return `count` sorted indices below `total`, int64; `ValueError` if the bytes are not these."""
    if part.dtype != torch.uint8 or part.dim() != 1 or (count > 0) != (len(part) > 0):
        raise ValueError(f"indices that are {part.dtype} {tuple(part.shape)}")
    if not count:
        return torch.zeros(0, dtype=torch.int64)
    data = part.cpu().numpy()
    b, num_bytes = int(data[0]), -(-count * int(data[0]) // 8)
    if b > total.bit_length() or 1 + num_bytes > len(data):
        raise ValueError(f"{count} indices with {b} bits each in {len(data)} bytes")
    split = len(data) - num_bytes
    ends = np.flatnonzero(np.unpackbits(data[1:split]))
    high = np.diff(ends, prepend=-1) - 1
    if len(ends) != count or int(high.max()) > total >> b:
        raise ValueError(f"{len(ends)} indices, expected {count} below {total}")
    rests = np.unpackbits(data[split:], count=count * b).reshape(count, b).astype(np.int64)
    indices = np.cumsum((high << b) + (rests << np.arange(b)).sum(axis=1) + 1) - 1
    if int(indices[-1]) >= total:
        raise ValueError(f"index {indices[-1]}, expected one below {total}")
    return torch.from_numpy(indices)
