"""Natural owners: the rows of one author, hospital or shop stay together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from trillium.data.partitions import Partition, require_column, require_rows
from trillium.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset


class Natural(Partition, name="natural"):
    """Give each client whole owners, named by the column `client`.

    There are always `num_clients` clients. Where the data have more owners, owners are folded:
    from the largest to the smallest, each goes to the client with the fewest rows so far.
    """

    def assign(self, rows: Dataset, num_clients: int, seed: int) -> list[list[int]]:
        """Return the row indices of each client; fewer owners than clients are refused."""
        require_column(
            rows, "client", self.name, "Name the owner's column in the source: client: <column>"
        )
        require_rows(len(rows), num_clients)
        owners = np.asarray(rows["client"][:])
        names, sizes = np.unique(owners, return_counts=True)
        if len(names) < num_clients:
            raise UserError(
                f"num_clients: {num_clients}",
                f"the data have {len(names)} natural owners, and an owner is not divided",
                f"Write num_clients: {len(names)} or less",
            )
        rng = np.random.default_rng(seed)
        parts: list[list[int]] = [[] for _ in range(num_clients)]
        # The shuffle decides among owners of equal size.
        order = rng.permutation(len(names))
        for owner in order[np.argsort(-sizes[order], kind="stable")]:
            min(parts, key=len).extend(np.flatnonzero(owners == names[owner]).tolist())
        return [rng.permutation(part).tolist() for part in parts]
