"""Quantity skew: clients of very different size, each with a random sample of all rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from trillium.data.partitions import Partition, require_rows

if TYPE_CHECKING:
    from datasets import Dataset


class SizeSkewed(Partition, name="size_skewed"):
    """Give client k a share of the rows proportional to (k + 1) ** -power, and at least one row.

    Attributes:
        power: 0 gives equal sizes, 1 Zipf's law, 2 leaves most rows with the first client.
    """

    power: float = Field(default=1.0, ge=0)

    def assign(self, rows: Dataset, num_clients: int, seed: int) -> list[list[int]]:
        """Return the row indices of each client, from the largest client to the smallest."""
        require_rows(len(rows), num_clients)
        weights = np.arange(1, num_clients + 1, dtype=float) ** -self.power
        # One row each is set aside, so that rounding cannot leave a client without.
        ends = np.cumsum(weights / weights.sum()) * (len(rows) - num_clients)
        cuts = np.round(ends[:-1]).astype(int) + np.arange(1, num_clients)
        order = np.random.default_rng(seed).permutation(len(rows))
        return [part.tolist() for part in np.split(order, cuts)]
