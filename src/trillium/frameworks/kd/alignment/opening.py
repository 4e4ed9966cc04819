"""The piece of another vocabulary that a piece opens with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence


class Opening:
    """Finds the longest piece that a piece begins with, if pieces can also write the rest of it.

    Where one tokenizer says " tokenization" at once, another begins to say it, " token", and goes on.
    What the first says of the longer piece holds of the shorter one, since it comes first. That
    the rest can be written keeps whole words from standing for others that begin like them.
    """

    def __init__(self, places: Mapping[str, int]) -> None:
        self._of = places
        self._longest = max(map(len, places), default=0)

    def find(self, pieces: Iterable[str]) -> list[int]:
        """Return the id of the opening of each of some pieces, -1 where there is none."""
        return [self._find(piece) for piece in pieces]

    def _find(self, piece: str) -> int:
        parts = self._split(piece)
        return self._of[parts[0]] if parts else -1

    def _split(self, piece: str) -> Sequence[str]:
        """Return pieces that write this one, the longest first; none where they cannot."""
        parts, start = [], 0
        while start < len(piece):
            ends = range(min(len(piece), start + self._longest), start, -1)
            part = next((piece[start:end] for end in ends if piece[start:end] in self._of), None)
            if part is None:
                return []
            parts.append(part)
            start += len(part)
        return parts
