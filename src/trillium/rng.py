"""Random numbers that depend on what they are for, never on what ran before."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive_seed(seed: int, *words: str | int) -> int:
    """Return a 63-bit seed for one purpose, e.g. `derive_seed(0, "cohort", round)`."""
    text = "/".join(str(word) for word in (seed, *words))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(seed: int, *words: str | int) -> torch.Generator:
    """Return a CPU generator for one purpose."""
    return torch.Generator().manual_seed(derive_seed(seed, *words))


@contextmanager
def scoped_rng(seed: int, *words: str | int) -> Iterator[None]:
    """Seed Python, NumPy and torch for the block, and restore their states after it."""
    derived = derive_seed(seed, *words)
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            _seed_torch(derived)
            random.seed(derived)
            np.random.seed(derived % 2**32)
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


def _seed_torch(seed: int) -> None:
    """Seed torch's own generators.

    Without an accelerator `torch.manual_seed` takes a hundred times as long: it notes the call stack,
    several times, for devices that may come to life later. A split does this with every message.
    """
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)
