"""A table as it is: its columns are read when they are named, and say where a value stands."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trillium.errors import UserError, suggest

if TYPE_CHECKING:
    from datasets import Dataset

Read = Callable[[str], list[Any]]


@dataclass(frozen=True)
class Table:
    """The rows of a file, or of a split.

    Attributes:
        origin: what errors call it, such as the name of a file.
        names: of the columns, in order; those that stand there twice, twice.
        read: returns the values of a column, `None` where a row has none.
        class_names: of columns that hold classes by number, what the numbers stand for.
        item_names: of columns that hold lists of such numbers, likewise.
    """

    origin: str
    names: Sequence[str]
    num_rows: int
    read: Read
    class_names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    item_names: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.num_rows

    def column(self, what: str, name: str) -> list[Any]:
        """Return the values of a column, `None` for gaps: no value, NaN, an empty text or list.

        Args:
            what: the column is, in errors.

        Raises:
            UserError: there is no such column, or several.
        """
        if name not in self.names:
            # What a file without header calls its columns is a row: it stands where nothing is shared.
            names = list(dict.fromkeys(self.names))
            close = suggest(name, names)
            hint = f". {close}" if close.startswith("Did you mean") else ""
            raise UserError(
                f"{what}: {name} in {self.origin}",
                "there is no such column",
                f"Name one that it has: {', '.join(names)}{hint}",
                code="no_column",
            )
        if list(self.names).count(name) > 1:
            raise UserError(
                f"{what}: {name} in {self.origin}",
                "more than one column has this name",
                "Rename all but one of them",
            )
        return [None if _is_gap(value) else value for value in self.read(name)]

    def full_column(self, what: str, name: str) -> list[Any]:
        """Return the values of a column in which every row has one."""
        values = self.column(what, name)
        self.check_gaps(what, name, [place for place, v in enumerate(values) if v is None])
        return values

    def check_gaps(self, what: str, name: str, gaps: Sequence[int]) -> None:
        """Refuse rows without a value."""
        if gaps:
            raise UserError(
                f"{what}: {name} in {self.origin}",
                f"{len(gaps)} of {self.num_rows} rows have no value, the first is row {gaps[0] + 1}",
                "Fill in these rows or leave them out",
                code="no_value",
            )

    def wrong(self, what: str, name: str, place: int, value: object, why: str) -> UserError:
        """Return the error of a value, which is named where the user alone can read it."""
        wide = reprlib.Repr()
        wide.maxstring = wide.maxother = 60
        return UserError(
            f"{what}: {name}, row {place + 1} of {self.origin}, which holds {wide.repr(value)}",
            why,
            "Correct the row, or leave it out",
            code="wrong_value",
        )

    def texts(self, what: str, name: str, values: Sequence[Any]) -> list[str]:
        """Return values that must be texts, gaps left as they are."""
        for place, value in enumerate(values):
            if value is not None and (type(value) is not str or not _is_whole(value)):
                raise self.wrong(what, name, place, value, no_text(value))
        return list(values)


def no_text(value: object) -> str:
    """Return why a value is no text."""
    if isinstance(value, str):
        return "the text holds half of a surrogate pair, which no encoding can write"
    if isinstance(value, bytes):
        return "these are bytes of an unknown encoding, and not text"
    return f"a text is wanted, and this is of type {type(value).__name__}; numbers go in quotes"


def of_dataset(rows: Dataset, origin: str) -> Table:
    """Return the rows of a data set as a table."""
    from datasets import ClassLabel

    plain = rows.with_format(None)
    classes = {n: f.names for n, f in rows.features.items() if isinstance(f, ClassLabel)}
    inside = {n: getattr(f, "feature", None) for n, f in rows.features.items()}
    items = {n: f.names for n, f in inside.items() if isinstance(f, ClassLabel)}
    return Table(
        origin,
        tuple(rows.column_names),
        len(rows),
        readable(lambda name: list(plain[name]), origin),
        classes,
        items,
    )


def of_rows(rows: Sequence[Mapping[str, Any]], origin: str) -> Table:
    """Return objects as a table; it has the columns that any of them has."""
    names = dict.fromkeys(name for row in rows for name in row)
    doubled = dict.fromkeys(
        name for row in rows if isinstance(row, Doubled) for name in row.doubled
    )
    return Table(
        origin,
        (*names, *doubled),
        len(rows),
        lambda name: [row.get(name) for row in rows],
    )


class Doubled(dict[str, Any]):
    """An object that names one of its keys twice."""

    doubled: tuple[str, ...] = ()


def joined(tables: Sequence[Table], origin: str) -> Table:
    """Return tables of the same columns one below the other."""
    if len(tables) == 1:
        return tables[0]
    names = dict.fromkeys(name for table in tables for name in table.names)
    doubled = [n for n in names if any(list(table.names).count(n) > 1 for table in tables)]

    def read(name: str) -> list[Any]:
        return [
            value
            for table in tables
            for value in (table.read(name) if name in table.names else [None] * len(table))
        ]

    return Table(origin, (*names, *doubled), sum(map(len, tables)), read)


def part(table: Table, first: int, last: int) -> Table:
    """Return some rows of a table."""
    return Table(
        table.origin,
        table.names,
        last - first,
        lambda name: table.read(name)[first:last],
        table.class_names,
        table.item_names,
    )


def readable(read: Read, origin: str) -> Read:
    """Return what reads a column, and explains what fails on the way."""

    def reading(name: str) -> list[Any]:
        try:
            return read(name)
        except UserError:
            raise
        # Whatever a library says of values that it cannot decode; it may quote them.
        except Exception as error:
            raise UserError(
                f"column {name} of {origin}",
                f"its values cannot be read: {_first_line(error)}",
                "Write the column as text",
            ) from error

    return reading


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _is_gap(value: object) -> bool:
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, str | list) and not value)


def _is_whole(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
