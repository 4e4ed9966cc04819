"""What rows say that a model is to say of them: a class, several labels, numbers, or tags of words.

Each is read in names as they stand in the file; `numbered` makes numbers of them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from trillium.data.sources.labels import class_names, label_space, names_of
from trillium.data.sources.table import Table
from trillium.errors import UserError

_TWICE = (
    "it names a label twice; zeros and ones, one for each label, go into columns of their own, which "
    "data.source.labels names"
)


def classes(rows: Table, label: str) -> tuple[list[Any], tuple[str, ...]]:
    """Return the class of each row, and all classes in order."""
    names = class_names(rows, label)
    return names, tuple(label_space(rows, label, names))


def label_sets(
    rows: Table, label: str, columns: Sequence[str], separator: str
) -> tuple[list[Any], tuple[str, ...]]:
    """Return the labels of each row, and all labels in order.

    Args:
        label: the column that lists them; a text is a JSON list, or names between separators.
        columns: in place of it, one column for each label, which says whether a row has it.
    """
    if columns:
        marks = [_marks(rows, name) for name in columns]
        return [
            [n for n, m in zip(columns, own, strict=True) if m] for own in zip(*marks, strict=True)
        ], tuple(columns)
    known = rows.item_names.get(label)
    found = []
    for place, value in enumerate(rows.column("label", label)):
        items = _items(rows, label, place, value, separator)
        if known is None:
            names = names_of(rows, "label", label, items, place)
        elif all(type(item) is int and 0 <= item < len(known) for item in items):
            names = [str(known[item]) for item in items]
        else:
            raise rows.wrong("label", label, place, value, f"its labels are 0 to {len(known) - 1}")
        if len({*names}) < len(names):
            raise rows.wrong("label", label, place, value, _TWICE)
        found.append(names)
    named = [name for names in found for name in names]
    if not named:
        raise UserError(
            f"label: {label} in {rows.origin}",
            "no row has a label",
            "Name the column that lists the labels with data.source.label",
        )
    return found, tuple(known or label_space(rows, label, named))


def numbers(rows: Table, label: str, columns: Sequence[str]) -> tuple[list[Any], tuple[str, ...]]:
    """Return the numbers of each row, and what they are called.

    Args:
        label: the column that holds one, or a list of them.
        columns: in place of it, one column for each.
    """
    if columns:
        read = [_floats(rows, name, rows.full_column("label", name)) for name in columns]
        return [list(own) for own in zip(*read, strict=True)], tuple(columns)
    values = rows.full_column("label", label)
    lists = [value if isinstance(value, list) else [value] for value in values]
    size = len(lists[0])
    for place, own in enumerate(lists):
        if len(own) != size:
            raise rows.wrong("label", label, place, values[place], f"row 1 has {size} numbers")
    found = [_floats(rows, label, own, place) for place, own in enumerate(lists)]
    return found, (label,) if size == 1 else tuple(f"{label}_{n}" for n in range(size))


def numbered(answer: Any, ids: Mapping[str, int]) -> Any:
    """Return an answer with the numbers of classes or labels in place of their names."""
    if isinstance(answer, list):
        return [numbered(item, ids) for item in answer]
    return ids[answer] if isinstance(answer, str) else answer


def named(answer: Any, labels: Sequence[str]) -> Any:
    """Return an answer with names again."""
    if isinstance(answer, list):
        return [named(item, labels) for item in answer]
    return labels[answer] if isinstance(answer, int) else answer


def _items(rows: Table, label: str, place: int, value: Any, separator: str) -> list[Any]:
    if value is None:  # a row may have no label at all
        return []
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError as error:
            why = f"it begins like a JSON list, and is none ({error})"
            raise rows.wrong("label", label, place, value, why) from None
    elif isinstance(value, str):
        value = [part.strip() for part in value.split(separator) if part.strip()]
    return value if isinstance(value, list) else [value]


_MARKS = {"1": True, "0": False, "true": True, "false": False}


def _marks(rows: Table, name: str) -> list[bool]:
    found = []
    for place, value in enumerate(rows.full_column("label", name)):
        mark = _MARKS.get(
            str(int(value) if isinstance(value, float) and value in (0, 1) else value)
            .strip()
            .lower()
        )
        if mark is None:
            raise rows.wrong("label", name, place, value, "it is 0 or 1, true or false")
        found.append(mark)
    return found


def _floats(rows: Table, name: str, values: Sequence[Any], place: int | None = None) -> list[float]:
    """Return values as numbers; they are those of one row, if its place is given."""
    found = []
    for at, value in enumerate(values):
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise rows.wrong(
                "label", name, at if place is None else place, value, "it is no number"
            )
        found.append(number)
    return found
