"""Rows that a client holds back from training, to measure models on them."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from trillium.data.load import row_keys

if TYPE_CHECKING:
    from datasets import Dataset


def divided(rows: Dataset, fraction: float, seed: int, name: str) -> tuple[Dataset, Dataset]:
    """Return what a client trains on, and a share that it measures on; no text is in both.

    What it trains on lacks all rows with a text that is held back. A client all of whose rows have one
    text holds none back.

    Args:
        seed, name: from which the choice follows; the same in a simulation and at a node.
    """
    from trillium.rng import derive_seed

    keys = row_keys(rows)
    times = sorted(Counter(keys).items())
    order = np.random.default_rng(derive_seed(seed, "held_back", name)).permutation(len(times))
    wanted, held = max(round(fraction * len(rows)), 1), set[str]()
    for place in order[:-1]:  # one text is left to train on, whatever is held back
        if wanted <= 0:
            break
        held.add(times[place][0])
        wanted -= times[place][1]
    kept = [n for n, key in enumerate(keys) if key not in held]
    return rows.select(kept), rows.select([n for n, key in enumerate(keys) if key in held])
