"""Rows whose words have tags: lists of words with lists of tags, or texts with marked spans."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from trillium.data.sources.labels import label_space, names_of
from trillium.data.sources.table import Table
from trillium.tasks.token_classification import words_in

WORDS: Final = "words"  # in the columns of Trillium's own files


@dataclass(frozen=True)
class Tagged:
    """How the rows of a table say words and tags.

    Attributes:
        text: gives the texts, where rows have no lists of words.
        tokens, label, spans: names of columns.
    """

    rows: Table
    text: Callable[[], list[str]]
    tokens: str
    label: str
    spans: str

    def words(self) -> dict[str, list[Any]]:
        """Return texts, and where in them their words stand."""
        if self._has_tokens:
            lists = self._lists("tokens", self.tokens)
            texts, words = [], []
            for place, own in enumerate(lists):
                if not all(isinstance(word, str) and word.strip() for word in own):
                    why = "each word is a text that is not blank"
                    raise self.rows.wrong("tokens", self.tokens, place, own, why)
                ends = [sum(len(w) + 1 for w in own[: n + 1]) - 1 for n in range(len(own))]
                words.append([[end - len(word), end] for word, end in zip(own, ends, strict=True)])
                texts.append(" ".join(own))
            return {"text": texts, WORDS: words}
        texts = self.text()
        if WORDS in self.rows.names:
            return {"text": texts, WORDS: self._lists(WORDS, WORDS)}
        if self.spans not in self.rows.names:
            return {"text": texts, WORDS: [[list(word) for word in words_in(t)] for t in texts]}
        spans = self._spans(texts)
        return {"text": texts, WORDS: [_cut(t, own) for t, own in zip(texts, spans, strict=True)]}

    def tags(self) -> tuple[list[Any], tuple[str, ...]]:
        """Return the tags of each row's words, and all tags in order."""
        told = self.words()
        if not self._has_tokens and WORDS not in self.rows.names and self.spans in self.rows.names:
            spans = self._spans(told["text"])
            found = [_marked(*own) for own in zip(told[WORDS], spans, strict=True)]
            kinds = sorted({kind for own in spans for _, _, kind in own})
            return found, ("O", *(f"{part}-{kind}" for kind in kinds for part in "BI"))
        known = self.rows.item_names.get(self.label)
        found = []
        for place, own in enumerate(self._lists("label", self.label)):
            size = len(told[WORDS][place])
            if len(own) != size:
                why = f"{len(own)} tags for {size} words"
                raise self.rows.wrong("label", self.label, place, own, why)
            if known is None:
                found.append(names_of(self.rows, "label", self.label, own, place))
            elif all(type(n) is int and 0 <= n < len(known) for n in own):
                found.append([str(known[n]) for n in own])
            else:
                why = f"its tags are 0 to {len(known) - 1}"
                raise self.rows.wrong("label", self.label, place, own, why)
        names = {name for own in found for name in own}
        names |= {f"I-{name[2:]}" for name in names if name.startswith("B-")}  # of longer entities
        return found, tuple(known or label_space(self.rows, self.label, sorted(names)))

    @property
    def _has_tokens(self) -> bool:
        return self.tokens in self.rows.names

    def _lists(self, what: str, name: str) -> list[list[Any]]:
        """Return the lists of a column; in a table of texts they are JSON."""
        found = []
        for place, value in enumerate(self.rows.column(what, name)):
            own = [] if value is None else value
            if isinstance(own, str):
                try:
                    own = json.loads(own)
                except ValueError:
                    own = None
            if not isinstance(own, list):
                why = "a list is wanted, one item for each word, or in a table of texts a JSON list"
                raise self.rows.wrong(what, name, place, value, why)
            found.append(own)
        return found

    def _spans(self, texts: Sequence[str]) -> list[list[tuple[int, int, str]]]:
        """Return start, end and kind of each row's spans, in order."""
        found = []
        for place, own in enumerate(self._lists("spans", self.spans)):
            spans = []
            for span in own:
                try:
                    start, end, kind = span["start"], span["end"], span["label"]
                except (TypeError, KeyError):
                    start = end = kind = None
                right = type(start) is int and type(end) is int and isinstance(kind, str) and kind
                if not right or not 0 <= start < end <= len(texts[place]):
                    why = (
                        "a span is {start, end, label}, with characters of the text that it covers"
                    )
                    raise self.rows.wrong("spans", self.spans, place, span, why)
                spans.append((start, end, kind))
            spans.sort()
            if any(a[1] > b[0] for a, b in pairwise(spans)):
                why = "two of its spans overlap, and a word has one tag"
                raise self.rows.wrong("spans", self.spans, place, own, why)
            found.append(spans)
        return found


def _cut(text: str, spans: Sequence[tuple[int, int, str]]) -> list[list[int]]:
    """Return the words of a text, cut where a span begins or ends."""
    borders = sorted({at for start, end, _ in spans for at in (start, end)})
    found = []
    for start, end in words_in(text):
        inside = [at for at in borders if start < at < end]
        found += [list(piece) for piece in zip([start, *inside], [*inside, end], strict=True)]
    return found


def _marked(words: Sequence[Sequence[int]], spans: Sequence[tuple[int, int, str]]) -> list[str]:
    """Return the tags of words: the first of a span begins it."""
    found, begun = [], -1
    for start, _ in words:
        at = next((n for n, span in enumerate(spans) if span[0] <= start < span[1]), None)
        part = "I" if at == begun else "B"
        found.append("O" if at is None else f"{part}-{spans[at][2]}")
        begun = begun if at is None else at
    return found
