"""Which predictions of two tokenisations of one text are about the same place in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trillium.frameworks.kd.alignment.pieces import UNKNOWN, Pieces
from trillium.tasks import IGNORE, Example


@dataclass(frozen=True, eq=False)
class Alignment:
    """The source row of each target row; a row is the prediction of one supervised token.

    Attributes:
        rows: row of the source, int64 `(target rows,)`; -1 where there is none.
        spaces: by how many spaces the beginning of the target's next token is longer than that of the
            source's, -1, 0 or 1, int8 `(target rows,)`.
    """

    rows: Tensor
    spaces: Tensor

    @property
    def present(self) -> Tensor:
        """Whether there is a source row, bool `(target rows,)`."""
        return self.rows >= 0

    def __str__(self) -> str:
        """Say it in a line for logs."""
        return f"{int(self.present.sum())} of {len(self.rows)} predictions aligned"


def align(
    source: Sequence[Example],
    target: Sequence[Example],
    source_pieces: Pieces,
    target_pieces: Pieces,
) -> Alignment:
    """Align the rows of examples, whose rows stand one example after the other.

    Two rows correspond where both tokenizers have consumed exactly the same bytes of the same
    response, so that both models predict what comes next after the same text. The tokens that then
    come may differ in length; what that means for a distribution is the vocabulary map's matter.

    That is stricter than the dynamic programming of FuseLLM (Wan et al., 2024, arXiv 2401.10491) and
    FedMKT (Fan et al., 2024, arXiv 2406.02224), which finds some partner for every token, at least
    cost. Of un|happi|ness and unhapp|iness, the prediction after "un" may so become a teacher for
    that after "unhapp", and say at one place what follows at another. Here it goes without.

    Supervised spans are compared one by one, each from its beginning, so prompts may differ, as chat
    templates and truncation make them, and responses may be cut at different places. From where the
    bytes of a span differ, or where one has an unknown token, the rest of it is not aligned. If they
    differ from the first byte on, it is taken for another response.

    A space at the beginning of a span need not be in both, since SentencePiece puts one there.
    `spaces` tells so of the first row: one model is about to say " yes" where the other says "yes". It
    does so of other rows only where a tokenizer does not keep spaces. These then do not count at all,
    nor does case where one does not keep it.
    """
    rows, spaces, start = [], [], 0
    both = (source_pieces, target_pieces)
    for one, other in zip(source, target, strict=True):
        source_spans, num_source = _spans(one.labels, source_pieces, both)
        target_spans, num_target = _spans(other.labels, target_pieces, both)
        found = torch.full((num_target,), -1, dtype=torch.int64)
        longer = torch.zeros(num_target, dtype=torch.int8)
        # One of them may have fewer spans, where it was truncated.
        for source_span, target_span in zip(source_spans, target_spans, strict=False):
            for row, source_row, more in _pairs(source_span, target_span):
                found[row], longer[row] = start + source_row, more
        rows.append(found)
        spaces.append(longer)
        start += num_source
    return Alignment(
        torch.cat([torch.zeros(0, dtype=torch.int64), *rows]),
        torch.cat([torch.zeros(0, dtype=torch.int8), *spaces]),
    )


@dataclass(frozen=True)
class _Row:
    """A prediction: which, where in the text of its span, and whether its token begins with a space."""

    number: int
    place: int
    has_space: bool


@dataclass(frozen=True)
class _Span:
    """A supervised stretch of tokens: its text, as far as it is known, and its rows."""

    text: str
    rows: list[_Row]


def _spans(labels: Tensor, pieces: Pieces, both: Sequence[Pieces]) -> tuple[list[_Span], int]:
    """Return the supervised spans of an example, and how many rows they have."""
    tokens = labels.tolist()
    spans, number, place = [], 0, 0
    while place < len(tokens):
        if tokens[place] == IGNORE:
            place += 1
            continue
        texts: list[str] = []
        rows: list[_Row] = []
        length, is_cut = 0, False
        while place < len(tokens) and tokens[place] != IGNORE:
            piece = pieces.pieces[tokens[place]]
            is_known = piece is not None and piece != UNKNOWN
            if place > 0:  # nothing predicts the very first token
                if not is_cut:
                    rows.append(_Row(number, length, is_known and piece.startswith(" ")))
                number += 1
            is_cut = is_cut or not is_known
            if not is_cut:
                for kept in both:
                    piece = kept.comparable(piece)
                texts.append(piece)
                length += len(piece)
            place += 1
        spans.append(_Span("".join(texts), rows))
    return spans, number


def _pairs(source: _Span, target: _Span) -> Iterator[tuple[int, int, int]]:
    """Yield pairs of rows, target and source, and how many spaces the target has more in front."""
    skips = [(0, 0)]
    skips += [(1, 0)] if source.text.startswith(" ") else []
    skips += [(0, 1)] if target.text.startswith(" ") else []
    shared = {(s, t): _num_shared(source.text[s:], target.text[t:]) for s, t in skips}
    skip = max(skips, key=lambda option: shared[option])
    if not shared[skip] and source.text[skip[0] :] and target.text[skip[1] :]:
        return
    source_rows = _by_place(source, skip[0])
    for place, row in _by_place(target, skip[1]).items():
        if place <= shared[skip] and place in source_rows:
            other = source_rows[place]
            # Where texts part, the next tokens do not tell about the same space.
            is_same = place < shared[skip]
            more = int(row.has_space) - int(other.has_space) if is_same else 0
            yield row.number, other.number, more


def _by_place(span: _Span, skip: int) -> dict[int, _Row]:
    """Return the row at each border between tokens.

    Where several are at one place, as before and after a space that does not count, it is the last:
    the one that predicts what does count.
    """
    return {max(row.place - skip, 0): row for row in span.rows}


def _num_shared(one: str, other: str) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))
