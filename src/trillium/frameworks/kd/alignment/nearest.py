"""The most similar piece of another vocabulary, by edit distance."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import numpy as np
from rapidfuzz.distance import Levenshtein, Prefix
from rapidfuzz.process import cdist

from trillium.frameworks.kd.alignment.pieces import letters

LETTERS_PER_EDIT: Final = 4
_ENTRIES: Final = 2**23  # most distances held at once, two bytes each


class Nearest:
    """Finds, among pieces, the one at the smallest edit distance.

    Distances count letters that are put in, left out or changed, once the space at the beginning and
    case are left aside. There may be one in every four letters of the longer piece, so pieces of up to
    three letters have to be equal but for that space and case, and so have pieces with digits or
    without letters: another number is another number. Parts of letters have no similar ones.

    Of several at one distance it is the one that is nearest with space and case, then the one that
    begins alike for longest, then the one with the lowest id.

    Args:
        places: id of each piece to choose from.
    """

    def __init__(self, places: Mapping[str, int]) -> None:
        self._of: dict[str, list[tuple[int, str]]] = defaultdict(list)
        for piece, place in places.items():
            text = letters(piece)
            if text is not None:
                self._of[_folded(text)].append((place, text))
        self._by_length: dict[int, list[str]] = defaultdict(list)
        for core in self._of:
            if _is_word(core):
                self._by_length[len(core)].append(core)

    def find(self, pieces: Sequence[str]) -> list[int]:
        """Return the id of the most similar piece for each of some pieces, -1 where there is none."""
        texts = [letters(piece) for piece in pieces]
        cores = {_folded(text) for text in texts if text is not None}
        alike = {core: [core] for core in cores if core.strip() and core in self._of}
        alike |= self._similar([c for c in cores if c not in alike and _is_word(c)])
        return [
            -1 if text is None else self._best(text, alike.get(_folded(text), ())) for text in texts
        ]

    def _similar(self, cores: Sequence[str]) -> dict[str, list[str]]:
        """Return those at the smallest distance, where it is small enough."""
        by_length = defaultdict(list)
        for core in cores:
            by_length[len(core)].append(core)
        found = {}
        for length, group in by_length.items():
            # d <= max(length, other) / 4 bounds the other: it is at most a third longer.
            low, high = length - length // LETTERS_PER_EDIT, length * LETTERS_PER_EDIT // 3
            lengths = range(low, high + 1)
            choices = [core for other in lengths for core in self._by_length.get(other, ())]
            longest = np.array([max(length, len(core)) for core in choices])
            most = int(longest.max(initial=0)) // LETTERS_PER_EDIT
            if not most:
                continue
            step = max(1, _ENTRIES // len(choices))
            for start in range(0, len(group), step):
                part = group[start : start + step]
                distances = cdist(
                    part, choices, scorer=Levenshtein.distance, score_cutoff=most, dtype=np.int16
                )
                distances[distances > longest // LETTERS_PER_EDIT] = np.iinfo(np.int16).max
                least = distances.min(1)
                for row in (least <= most).nonzero()[0]:
                    places = (distances[row] == least[row]).nonzero()[0]
                    found[part[row]] = [choices[place] for place in places]
        return found

    def _best(self, text: str, cores: Iterable[str]) -> int:
        options = [option for core in cores for option in self._of[core]]
        if not options:
            return -1
        return min(
            options,
            key=lambda option: (
                Levenshtein.distance(text, option[1]),
                -Prefix.similarity(text, option[1]),
                option[0],
            ),
        )[0]


def _folded(text: str) -> str:
    return text.removeprefix(" ").casefold()


def _is_word(core: str) -> bool:
    has_letters = any(char.isalpha() for char in core)
    return has_letters and not any(char.isnumeric() for char in core)
