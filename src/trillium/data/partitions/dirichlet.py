"""Label skew: each class is divided among the clients by a draw from a Dirichlet distribution.

Bayesian Nonparametric Federated Learning of Neural Networks, Yurochkin et al. 2019,
arXiv:1905.12022.
"""

from __future__ import annotations

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

if TYPE_CHECKING:
    from datasets import Dataset


class Dirichlet(Partition, name="dirichlet"):
    """Divide each class by proportions drawn from Dir(alpha).

    Attributes:
        alpha: 0.1 gives clients with few classes each, 100 is nearly iid.
        min_size: rows that every client gets at least, taken from the largest clients.
    """

    by_class: ClassVar[bool] = True

    alpha: float = Field(default=0.5, gt=0)
    min_size: int = Field(default=1, ge=1)

    def assign(self, rows: Dataset, num_clients: int, seed: int) -> list[list[int]]:
        """Return the row indices of each client."""
        from datasets import Dataset
        from flwr_datasets.partitioner import DirichletPartitioner

        require_column(rows, "label", self.name, "Write partition: iid or partition: size_skewed")
        require_rows(len(rows), num_clients, self.min_size)
        partitioner = DirichletPartitioner(
            num_partitions=num_clients,
            partition_by="label",
            alpha=self.alpha,
            min_partition_size=0,
            shuffle=False,
            seed=seed,
        )
        partitioner.dataset = Dataset.from_dict({"label": classes_of(rows)})
        partitioner.load_partition(0)
        # A table of them all: to view the rows of a thousand clients takes seconds.
        parts = [list(partitioner._partition_id_to_indices[i]) for i in range(num_clients)]
        return fill_up(parts, self.min_size, np.random.default_rng(seed))
