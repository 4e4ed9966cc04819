"""Errors for users: what was given, why it cannot work, what to write instead."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from types import MappingProxyType
from typing import Final, Literal, get_args

Code = Literal[
    "recipe",
    "settings",
    "keys",
    "no_file",
    "no_rows",
    "no_column",
    "no_value",
    "wrong_value",
    "unknown_class",
    "rows",
    "useless",
    "model",
    "state",
    "session",
    "link",
]
SAID: Final[Mapping[Code, str]] = MappingProxyType(
    {
        "recipe": "it cannot use the recipe",
        "settings": "its own settings are not valid",
        "keys": "its certificate or key cannot be read",
        "no_file": "its file of rows is not there",
        "no_rows": "its file has no rows",
        "no_column": "its rows lack a column that the recipe names",
        "no_value": "some of its rows have no value in a column that the recipe names",
        "wrong_value": "a value of its rows is not what the recipe wants there",
        "unknown_class": "its rows have a class that the federation lacks",
        "rows": "its rows cannot be read",
        "useless": "none of its rows has a token to learn or to predict",
        "model": "it cannot load or use the model",
        "state": "its state cannot be kept or read",
        "session": "it was not let in, or did not reach the server",
        "link": "it lost its link for good",
    }
)
"""All that another machine is told of what goes wrong: no word of it comes from where it went wrong."""
assert {*SAID} == {*get_args(Code)}


class UserError(ValueError):
    """Something the user gave cannot work.

    Attributes:
        code: what another machine may be told of it; nothing but that something is wrong, if it has
            none.
    """

    def __init__(self, given: str, why: str, instead: str, code: Code | None = None) -> None:
        super().__init__(f"{given}: {why}. {instead}")
        self.given, self.why, self.instead, self.code = given, why, instead, code

    def __reduce__(self) -> tuple[type[UserError], tuple[str, str, str, Code | None]]:
        """Pickle it whole, so that it can come back from a process that it was raised in."""
        return type(self), (self.given, self.why, self.instead, self.code)


class PeerError(ValueError):
    """What the other side sent is not what was agreed.

    Its text speaks of that alone, and of no row, path or setting of this side: it is told whole.
    """


def one_line(reason: str) -> str:
    """Return what the other side says as it may stand in a log: one printable line, not too long."""
    printable = "".join(char if char.isprintable() else " " for char in reason)
    return " ".join(printable.split())[:1000]


def shareable(error: BaseException) -> str:
    """Return what another machine may be told of an error: what is declared fit for it, no more."""
    if isinstance(error, PeerError):
        return str(error)
    if isinstance(error, UserError) and error.code is not None:
        return f"{SAID[error.code]} ({error.code}); its own log says more"
    what = type(error).__name__
    if isinstance(error, OSError) and error.errno is not None:
        what = os.strerror(error.errno)  # not its own text, which names files
    doing = getattr(error, "doing", None)
    return f"{SAID[doing] + ': ' if doing else ''}{what}; its own log says more"


@contextmanager
def doing(code: Code) -> Iterator[None]:
    """Say of errors that come from here, and have no code of their own, what was under way."""
    try:
        yield
    except UserError as error:
        error.code = error.code or code
        raise
    except Exception as error:
        error.__dict__.setdefault("doing", code)
        raise


def suggest(word: str, known: Iterable[str]) -> str:
    """Return "Did you mean …?" for the nearest known word, or the list of all of them."""
    names = sorted(known)
    plain = {_plain(name): name for name in names}
    close = get_close_matches(_plain(word), plain, n=1, cutoff=0.6)
    if close:
        return f"Did you mean {plain[close[0]]!r}?"
    return f"Choose one of: {', '.join(names) or '(none)'}"


def _plain(word: str) -> str:
    return word.lower().replace("-", "_").replace(" ", "_")
