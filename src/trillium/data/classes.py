"""The classes of a federation: named in the recipe, those of the rows, or agreed on by the clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from trillium.data.sources.labels import sorted_classes
from trillium.errors import UserError

MOST: Final = 10_000  # names that a node may tell
LONGEST: Final = 200  # characters of one


def agreed(sets: Mapping[str, Sequence[str]], how: str) -> tuple[str, ...]:
    """Return the classes of a federation, sorted, by those that each client has.

    Args:
        sets: by the client's name; what the server's own rows have is among them, if it has any.
        how: `union`, or `fixed` if all must have the same.

    Raises:
        UserError: they must, and do not.
    """
    union = {name for own in sets.values() for name in own}
    fewer = sorted(client for client, own in sets.items() if {*own} != union)
    if how == "fixed" and fewer:
        raise UserError(
            "data.labels=fixed",
            f"{', '.join(fewer[:5])}{' …' * (len(fewer) > 5)} lack classes that others have, of "
            f"{len(union)} in all",
            "Write data.labels=union, or name the classes: data.labels=[…]",
        )
    return tuple(sorted_classes(union))


def check_told(names: object) -> list[str]:
    """Return the names of classes that a node tells; `ValueError` if they are none, or too long."""
    if not isinstance(names, list) or not 0 < len(names) <= MOST:
        raise ValueError(f"1 to {MOST} names of classes may be told")
    for name in names:
        if not isinstance(name, str) or not 0 < len(name) <= LONGEST or not name.isprintable():
            raise ValueError(
                f"a name of a class has 1 to {LONGEST} printable characters, and no line breaks"
            )
    return names
