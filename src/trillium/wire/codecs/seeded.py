"""Random numbers that both sides draw alike: the raw words of a counter-based generator.

Only Philox's raw output is used (Salmon et al., 2011, "Parallel random numbers: as easy as 1, 2, 3"),
which is the same on every machine and in every release; derived distributions are not promised to be.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trillium.rng import derive_seed


def _words(seed: int, count: int) -> NDArray[np.uint64]:
    words: NDArray[np.uint64] = np.random.Philox(key=seed).random_raw(count)
    return words.astype("<u8")  # what is below a word's bytes is read in this order


def signs(key: int, count: int) -> Tensor:
    """Return `count` random signs, float32 of 1 and -1."""
    words = _words(derive_seed(key, "signs"), -(-count // 64))
    bits = np.unpackbits(words.view(np.uint8), count=count)
    return 1.0 - 2.0 * torch.from_numpy(bits).float()


def choose(key: int, total: int, count: int) -> Tensor:
    """Return `count` of the indices below `total`, sorted, int64; each subset is as likely."""
    if count in (0, total):
        return torch.arange(count)
    # The index in the lowest bits leaves no ties, so that every way to select gives the same answer.
    lowest = np.uint64((1 << (total - 1).bit_length()) - 1)
    tickets = (_words(derive_seed(key, "choose"), total) & ~lowest) | np.arange(
        total, dtype=np.uint64
    )
    chosen = np.partition(tickets, count - 1)[:count] & lowest
    return torch.from_numpy(np.sort(chosen).astype(np.int64))


def noise(key: int, tensor: Tensor) -> Tensor:
    """Return uniform numbers in [0, 1), one for each entry, that depend on the content as well.

    Clients share the key of a round; if they shared the noise too, their rounding errors would not
    average out.
    """
    return draws(key, tensor, tuple(tensor.shape)).to(tensor.device)


def draws(key: int, content: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return uniform numbers in [0, 1) of a shape that depend on the key and on what they are for."""
    raw = content.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    digest = hashlib.blake2b(raw.data, digest_size=8).hexdigest()
    count = math.prod(shape)
    words = _words(derive_seed(key, "noise", digest), -(-count // 2))
    halves = words.view("<u4")[:count] >> np.uint32(8)
    uniform = torch.from_numpy(halves.astype(np.float32)) * 2.0**-24
    return uniform.reshape(shape)
