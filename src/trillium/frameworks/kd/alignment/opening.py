"""The piece of another vocabulary that a piece opens with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def openings(pieces: Iterable[str], places: Mapping[str, int]) -> list[int]:
    """Return for each piece the place of the longest one that it begins with, -1 without any.

    Where one tokenizer says " tokenization" at once, another begins to say it, " token", and goes on.
    What the first says of the longer piece holds of the shorter one, since it comes first. Other
    pieces must be able to write the rest: that keeps whole words from standing for others that begin
    like them.
    """
    longest = max(map(len, places), default=0)
    return [_opening(piece, places, longest) for piece in pieces]


def _opening(piece: str, places: Mapping[str, int], longest: int) -> int:
    first, start = -1, 0
    while start < len(piece):
        ends = range(min(len(piece), start + longest), start, -1)
        part = next((piece[start:end] for end in ends if piece[start:end] in places), None)
        if part is None:
            return -1
        first = first if start else places[part]
        start += len(part)
    return first
