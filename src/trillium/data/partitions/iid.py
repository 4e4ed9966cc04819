"""Every client's rows are a random sample of all rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from trillium.data.partitions import Partition, require_rows

if TYPE_CHECKING:
    from datasets import Dataset


class IID(Partition, name="iid"):
    """Deal shuffled rows in parts of equal size, give or take one row."""

    def assign(self, rows: Dataset, num_clients: int, seed: int) -> list[list[int]]:
        """Return the row indices of each client."""
        require_rows(len(rows), num_clients)
        order = np.random.default_rng(seed).permutation(len(rows))
        return [part.tolist() for part in np.array_split(order, num_clients)]
