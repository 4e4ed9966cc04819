"""Pathological label skew: every client holds few classes.

Communication-Efficient Learning of Deep Networks from Decentralized Data, McMahan et al. 2017,
arXiv:1602.05629, there with 2 classes per client.
"""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from trillium.data.partitions import (
    Partition,
    classes_of,
    fill_up,
    require_column,
    require_rows,
)
from trillium.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset


class Shard(Partition, name="shard"):
    """Cut each class into shards and deal every client shards of a few classes.

    Classes are held by equally many clients, give or take one. A client whose classes have too
    few rows for all their holders gets one row of the largest client.

    Attributes:
        classes_per_client: number of classes; null means as few as leave no class without a client.
    """

    by_class: ClassVar[bool] = True

    classes_per_client: int | None = Field(default=None, ge=1)

    def assign(self, rows: Dataset, num_clients: int, seed: int) -> list[list[int]]:
        """Return the row indices of each client; no class may be without one."""
        require_column(rows, "label", self.name, "Write partition: iid or partition: size_skewed")
        require_rows(len(rows), num_clients)
        labels = np.asarray(classes_of(rows))
        classes = np.unique(labels)
        needed = ceil(len(classes) / num_clients)
        held = min(self.classes_per_client or needed, len(classes))
        if held < needed:
            raise UserError(
                f"classes_per_client: {held}",
                f"{num_clients} clients then hold at most {held * num_clients} of "
                f"{len(classes)} classes",
                f"Write classes_per_client: {needed} or more",
            )
        rng = np.random.default_rng(seed)
        # Dealing round and round gives each client `held` classes in a row: all different.
        deck = np.resize(rng.permutation(classes), num_clients * held)
        parts: list[list[int]] = [[] for _ in range(num_clients)]
        for label in classes:
            holders = np.flatnonzero(deck == label) // held
            shards = np.array_split(rng.permutation(np.flatnonzero(labels == label)), len(holders))
            for holder, shard in zip(rng.permutation(holders), shards, strict=True):
                parts[holder].extend(shard.tolist())
        return fill_up(parts, 1, rng)
