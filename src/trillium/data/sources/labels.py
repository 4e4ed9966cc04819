"""Classes and owners: their names as they stand in a file, and the numbers of the classes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from trillium.data.sources.table import Table
from trillium.errors import UserError


def class_names(rows: Table, name: str) -> list[str]:
    """Return each row's class by name, or by number where the classes have no names."""
    values = rows.full_column("label", name)
    if name not in rows.class_names:
        return names_of(rows, "label", name, values)
    if any(value == -1 for value in values):
        raise UserError(
            f"label: {name} in {rows.origin}",
            "some rows are marked -1, that is, unlabelled",
            "Choose a split with labels, or none, and test rows are held back from train",
        )
    known = rows.class_names[name]
    return [str(known[value]) for value in values]


def names_of(
    rows: Table, what: str, name: str, values: Sequence[Any], row: int | None = None
) -> list[str]:
    """Return the names of classes or owners as they stand in the file, numbers as they are counted.

    Args:
        values: of all rows, or those of one `row`.
    """
    found = []
    for at, value in enumerate(values):
        place = at if row is None else row
        if type(value) is bool:
            found.append("true" if value else "false")
        elif type(value) is int:
            found.append(str(value))
        elif type(value) is str and value.strip():
            found += rows.texts(what, name, [value])
        elif type(value) is str:
            rows.check_gaps(what, name, [place])
        else:
            kind = {"label": "a class", "client": "an owner"}[what]
            raise rows.wrong(
                what,
                name,
                place,
                value,
                f"{kind} is a text, a whole number, true or false, not of type {type(value).__name__}",
            )
    return found


_INTEGER = re.compile(r"0|-?[1-9][0-9]*")


def label_space(train: Table, name: str, names: Sequence[str]) -> list[str]:
    """The classes in the order of their ids: the schema's order, or sorted."""
    if name in train.class_names:
        return [str(known) for known in train.class_names[name]]
    return sorted_classes(names)


def sorted_classes(names: Iterable[str]) -> list[str]:
    """Return names of classes in their order, each once."""
    found = sorted({*names})
    # So 10 stands behind 2; 01 is no number, and another class than 1.
    return sorted(found, key=int) if all(map(_INTEGER.fullmatch, found)) else found


def check_known(
    rows: Table, column: str, answers: Sequence[Any], labels: Sequence[str], who: str
) -> None:
    """Refuse rows of classes that others, who are named, have no row of."""
    known, names = (
        {*labels},
        [answer if isinstance(answer, list) else [answer] for answer in answers],
    )
    places = [place for place, own in enumerate(names) if not known.issuperset(own)]
    if places:
        first = places[0] + 1
        unseen = ", ".join(sorted({name for at in places for name in names[at]} - known)[:5])
        raise UserError(
            f"label: {column} in {rows.origin}",
            f"{who} lacks the class of {len(places)} rows, the first is row {first}",
            f"It has no row of class {unseen}; it has {', '.join(labels[:5])}"
            f"{', …' * (len(labels) > 5)}. Correct the spelling, leave these rows out, or add rows of "
            "that class to the training split",
            code="unknown_class",
        )
