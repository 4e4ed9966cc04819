"""Which token of one vocabulary stands for which of another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache

import torch
from torch import Tensor

from trillium.frameworks.kd.alignment.pieces import ROLES, Pieces, is_byte


@dataclass(frozen=True)
class VocabularyAccount:
    """How many tokens were mapped: to the same text, to the same role, to a similar one, to none."""

    exact: int
    role: int
    similar: int
    none: int

    def to_json(self) -> dict[str, int]:
        """Return the numbers by name."""
        return asdict(self)

    def __str__(self) -> str:
        """Say it in a line for logs."""
        total = self.exact + self.role + self.similar + self.none
        return (
            f"{total} tokens: {self.exact} the same, {self.role} by role, "
            f"{self.similar} similar, {self.none} without counterpart"
        )


@dataclass(frozen=True, eq=False)
class VocabularyMap:
    """The token of a target vocabulary for each token of a source vocabulary, int64; -1 for none.

    `free` are the tokens that share the mass of what has no counterpart: those that nothing is
    mapped to, or all tokens if there are no such.
    """

    index: Tensor
    free: Tensor
    num_targets: int
    account: VocabularyAccount


@dataclass(frozen=True)
class Vocabularies:
    """Two vocabularies, one to be mapped to the other.

    A token goes to the same piece of text; if there is none, to what it opens with, which is what the
    target's tokenizer would begin to write the same piece with, or to none. Special tokens go by role
    alone. Of several tokens for one piece, that with the same spelling is taken, then one that is no
    byte of SentencePiece's, then the first.

    Attributes:
        num_sources: entries of the source's logits, which may be more than it has tokens.
    """

    source: Pieces
    target: Pieces
    num_sources: int
    num_targets: int

    def map(self, spaces: int = 0) -> VocabularyMap:
        """Return the map; it is made once in a process.

        `spaces` are put in front of each piece of the source, 1 or 0, or taken away, -1: as
        `Alignment.spaces` says.
        """
        return _make(self, spaces)


@lru_cache(maxsize=32)
def _make(pair: Vocabularies, spaces: int) -> VocabularyMap:
    same = _Same(pair.target, pair.num_targets)
    index = torch.full((pair.num_sources,), -1, dtype=torch.int64)
    roles = set(ROLES.values())
    exact = by_role = 0
    lacking: list[tuple[int, str]] = []
    for token, own in pair.source.known(pair.num_sources):
        is_role = own in roles
        piece = own if is_role else _spaced(own, spaces)
        found = same.find(pair.source.tokens[token] if spaces == 0 else None, piece)
        if found is not None:
            index[token] = found
            by_role += is_role
            exact += not is_role
        elif not is_role and piece:
            lacking.append((token, piece))
    words = {piece: token for piece, token in same.first.items() if piece not in roles}
    respelled = [pair.target.respelled(piece) for _, piece in lacking]
    for (token, _), place in zip(lacking, openings(respelled, words), strict=True):
        index[token] = place
    none = sum(int(index[token] < 0) for token, _ in pair.source.known(pair.num_sources))
    total = sum(1 for _ in pair.source.known(pair.num_sources))
    account = VocabularyAccount(exact, by_role, total - exact - by_role - none, none)
    return VocabularyMap(index, _free(index, pair), pair.num_targets, account)


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


def _spaced(piece: str, spaces: int) -> str:
    return f" {piece}" if spaces > 0 else piece.removeprefix(" ") if spaces < 0 else piece


def _free(index: Tensor, pair: Vocabularies) -> Tensor:
    """Return the tokens of the target that nothing is mapped to, or else all."""
    tokens = torch.tensor([token for token, _ in pair.target.known(pair.num_targets)])
    taken = torch.zeros(pair.num_targets, dtype=torch.bool)
    taken[index[index >= 0]] = True
    free = tokens[~taken[tokens]]
    return free if len(free) else tokens


class _Same:
    """Finds the token for the same piece; `first` has it where the spelling does not matter."""

    def __init__(self, target: Pieces, size: int) -> None:
        self._target = target
        self._spelled: dict[tuple[str | None, str], int] = {}
        self.first: dict[str, int] = {}
        for token, piece in target.known(size):
            spelling = target.tokens[token]
            self._spelled[spelling, piece] = token
            held = self.first.setdefault(piece, token)
            if is_byte(target.tokens[held]) and not is_byte(spelling):
                self.first[piece] = token

    def find(self, spelling: str | None, piece: str) -> int | None:
        found = self._spelled.get((spelling, piece), self.first.get(piece))
        return self.first.get(self._target.respelled(piece)) if found is None else found
