"""All rows of a source that are to be looked at as they are, undivided: to measure on, or to answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trillium.data.deployed import columns_of
from trillium.data.sources import Source
from trillium.data.sources.files import Files, read_table
from trillium.data.sources.hub import Hub
from trillium.data.sources.table import Table
from trillium.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset


def rows_of(source: Source, task: str, labels: Sequence[str]) -> Dataset:
    """Return all rows of a file, or of the test split of a dataset, in the columns of a task.

    Args:
        labels: the classes, by number; the rows need not have all of them.

    Raises:
        UserError: the rows cannot be read, or one is of a class that is not among these.
    """
    return columns_of(source).to_rows(_table(source), task, labels)


def inputs_of(source: Source, task: str) -> Dataset:
    """Return what a model is asked about in all rows: `text`, `prompt` or `messages`, and no label.

    Raises:
        UserError: the rows cannot be read, or lack a column.
    """
    return columns_of(source).inputs(_table(source), task)


def _table(source: Source) -> Table:
    if isinstance(source, Files):
        return read_table(source.train, source.encoding)
    if isinstance(source, Hub):
        return source.held_out()
    raise UserError(
        f"data.source={source.name}",
        "it generates rows, but rows of your own are needed here",
        "Name a file or dataset with --data, or leave the setting out",
    )
