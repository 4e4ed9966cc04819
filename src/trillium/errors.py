"""Errors for users: what was given, why it cannot work, what to write instead."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """Something the user gave cannot work."""

    def __init__(self, given: str, why: str, instead: str) -> None:
        super().__init__(f"{given}: {why}. {instead}")
        self.given, self.why, self.instead = given, why, instead

    def __reduce__(self) -> tuple[type[UserError], tuple[str, str, str]]:
        """Pickle it whole, so that it can come back from a process that it was raised in."""
        return type(self), (self.given, self.why, self.instead)


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
