"""Sources: where the rows come from, brought to one form per task.

=================  ======================================================================
task               columns of every source's datasets
=================  ======================================================================
`classification`   `text: str`, `label: int` (an index into `RawData.labels`)
`causal_lm`        `prompt: str`, `completion: str`, or `messages: list[{role, content}]`
`preference`       `prompt: str`, `chosen: str`, `rejected: str`, or without a prompt two
                   whole chats `chosen` and `rejected`, each `list[{role, content}]`
=================  ======================================================================

A column `client: str` may stand beside them: the row's natural owner.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trillium.component import Component

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class RawData:
    """All rows of a source in the columns of the task, not yet divided.

    Attributes:
        test: held-out rows, or None where the source has no test split.
        labels: class names, indexed by `label`; `()` for other tasks than `classification`.
    """

    train: Dataset
    test: Dataset | None
    labels: tuple[str, ...]


class Source(Component, kind="source", package="trillium.data.sources"):
    """Where the rows come from."""

    @abstractmethod
    def load(self, task: str, seed: int) -> RawData:
        """Return the rows in the columns of `task`, which is one of the table above.

        The seed drives sources that generate; sources that read give the same rows for all seeds.
        What cannot be found, read, or brought to the columns is refused.
        """
