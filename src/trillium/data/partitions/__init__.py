"""Partitions: how the training rows are divided among the clients."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from trillium.component import Component
from trillium.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

    from trillium.tasks import Task


class Partition(Component, kind="partition", package="trillium.data.partitions"):
    """How the training rows are divided among the clients.

    Class variables:
        by_class: it divides the rows by their classes; those of several labels by the set of them.
    """

    by_class: ClassVar[bool] = False

    def check(self, task: Task) -> None:
        """Refuse a task whose rows are of no class."""
        if self.by_class and task.data_form not in ("classification", "multi_label"):
            raise UserError(
                f"data.partition={self.name} with task={task.name}",
                "it divides rows by class, and they have none",
                "Write data.partition=iid, size_skewed, or natural with data.source.client",
            )

    @abstractmethod
    def assign(self, rows: Dataset, num_clients: int, seed: int) -> list[list[int]]:
        """Return the row indices of each client: every row once, no client without rows.

        The same arguments give the same answer; the order within a client is random. Rows that
        cannot be divided in this way are refused.
        """


def require_rows(num_rows: int, num_clients: int, min_size: int = 1) -> None:
    """Refuse more clients than the rows can feed with `min_size` each."""
    if num_rows < num_clients * min_size:
        each = "1 row" if min_size == 1 else f"{min_size} rows"
        raise UserError(
            f"num_clients: {num_clients}",
            f"{num_rows} training rows do not give each client {each}",
            f"Write num_clients: {max(num_rows // min_size, 1)} or less, or use more data",
        )


def classes_of(rows: Dataset) -> list[int]:
    """Return the class of each row; each set of labels is a class where rows have several."""
    labels: list[Any] = rows["label"][:]
    if not any(isinstance(own, list) for own in labels):
        return labels
    sets = [tuple(sorted(own)) for own in labels]
    known = {own: number for number, own in enumerate(sorted({*sets}))}
    return [known[own] for own in sets]


def require_column(rows: Dataset, column: str, partition: str, instead: str) -> None:
    """Refuse rows without the column that a partition divides by."""
    if column not in rows.column_names:
        raise UserError(
            f"partition: {partition}", f"it divides rows by {column}, and they have none", instead
        )


def fill_up(parts: list[list[int]], min_size: int, rng: np.random.Generator) -> list[list[int]]:
    """Move random rows from the largest parts to those below `min_size`, and shuffle each part.

    Drawing again until all are large enough, as is usual, need not end for many clients.
    """
    parts = [[int(row) for row in rng.permutation(part)] for part in parts]
    for part in parts:
        while len(part) < min_size:
            part.append(max(parts, key=len).pop())
    return parts
