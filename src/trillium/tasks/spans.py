"""Runs of tokens, some of which are supervised, with borders between two tokens."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from trillium.tasks.templates import Range

Spans = list[tuple[list[int], bool]]
"""Runs of tokens, and whether they are supervised."""


def spans_of(tokenizer: Any, text: str, supervised: Sequence[Range]) -> Spans:
    """Return a text as tokens, with the borders of what is supervised between two of them.

    Where a token would reach across a border (an answer that begins with a blank line), both sides are
    tokenised apart: so a model meets them when it writes.
    """
    borders = sorted({0, len(text), *(border for found in supervised for border in found)})
    pieces = list(pairwise(borders))
    seen = [any(s <= first and last <= e for s, e in supervised) for first, last in pieces]
    whole = token_ids(tokenizer, text)
    spans: Spans = []
    done = 0
    for (_, last), is_seen in zip(pieces, seen, strict=True):
        until = whole if last == len(text) else token_ids(tokenizer, text[:last])
        if whole[: len(until)] != until or len(until) < done:
            break
        spans.append((until[done:], is_seen))
        done = len(until)
    else:
        return spans
    return [
        (token_ids(tokenizer, text[first:last], continues=first > 0), is_seen)
        for (first, last), is_seen in zip(pieces, seen, strict=True)
    ]


def token_ids(tokenizer: Any, text: str, *, continues: bool = False) -> list[int]:
    """Return the tokens of a text; of one that continues another, without what begins a text."""
    found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not continues:
        return found
    line: list[int] = tokenizer("\n", add_special_tokens=False)["input_ids"]
    behind: list[int] = tokenizer("\n" + text, add_special_tokens=False)["input_ids"]
    return behind[len(line) :] if behind[: len(line)] == line else found
