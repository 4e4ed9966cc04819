"""Sources: where the rows come from, brought to one form per task.

=================  ======================================================================
task               columns of every source's datasets
=================  ======================================================================
`classification`   `text: str`, `label: int` (an index into `RawData.labels`)
`multi_label`      `text: str`, `label: list[int]` (such indices, each once)
`regression`       `text: str`, `label: list[float]` (one for each of `RawData.labels`)
`token_…`          `text: str`, `words: list[[start, end]]`, `label: list[int]` (a tag for each)
`causal_lm`        `prompt: str`, `completion: str`, or `messages: list[{role, content}]`
`preference`       `prompt: str`, `chosen: str`, `rejected: str`, or without a prompt two
                   whole chats `chosen` and `rejected`, each `list[{role, content}]`
=================  ======================================================================

A column `client: str` may stand beside them: the row's natural owner.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

from trillium.component import Component

if TYPE_CHECKING:
    from datasets import Dataset


Form = Literal[
    "classification", "multi_label", "regression", "token_classification", "causal_lm", "preference"
]
FORMS = frozenset[str](get_args(Form))


@dataclass(frozen=True)
class RawData:
    """All rows of a source in the columns of the task, not yet divided.

    Attributes:
        test: held-out rows, or None where the source has no test split.
        labels: names of the outputs, which `label` numbers; `()` for tasks that write.
    """

    train: Dataset
    test: Dataset | None
    labels: tuple[str, ...]


class Source(Component, kind="source", package="trillium.data.sources"):
    """Where the rows come from.

    Class variables:
        forms: of which tasks it has the columns.
    """

    forms: ClassVar[frozenset[str]] = frozenset({"classification", "causal_lm"})

    @abstractmethod
    def load(self, task: str, seed: int) -> RawData:
        """Return the rows in the columns of a task, one of `forms`.

        The seed drives sources that generate; sources that read give the same rows for all seeds.
        What cannot be found, read, or brought to the columns is refused.
        """
