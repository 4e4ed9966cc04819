"""What the first blocks of a model make of the texts of a side, computed once and kept.

In which texts went through the blocks together is kept, too: whoever lost what was computed (in a run
that is resumed, on another machine) computes it in the same company, and has the same to the last bit.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import blake2b

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from trillium.errors import UserError
from trillium.models.first_blocks import FirstBlocks
from trillium.tasks import Example
from trillium.tasks.batches import of_similar_length
from trillium.wire.codecs import Codec
from trillium.wire.codecs.stack import encode_stack
from trillium.wire.kinds import has_values
from trillium.wire.rows import EncodedRows, Layout

Place = tuple[int, int, int]
"""Where a text is: in which company, behind how many tokens of it, and how many it has."""


@dataclass
class Known:
    """What is known of texts.

    Attributes:
        log: token ids of texts that went through the blocks together, int32 `(texts, seq)`, -1 where
            padded, in order.
        stack: writes rows of hidden states as they are kept.
        max_bytes: of all that is kept.
        at_once: texts that go through the blocks together, at most.
    """

    first: FirstBlocks
    log: list[Tensor]
    stack: Sequence[Codec]
    max_bytes: int
    at_once: int
    _places: dict[bytes, Place] = field(default_factory=dict)
    _starts: dict[int, int] = field(default_factory=dict)  # in the records, of each company
    _layout: Layout = field(init=False)
    _num_tokens: int = 0
    _formal: dict[int, Tensor] = field(default_factory=dict)  # by length, where nothing has values

    def __post_init__(self) -> None:
        some = torch.zeros(1, self.first.width, dtype=self.first.dtype)
        self._layout = self._written(some).layout
        for number, ids in enumerate(self.log):
            self._note(number, ids.long())

    def of(self, examples: Sequence[Example], run: Callable[[Tensor], Tensor]) -> list[Example]:
        """Return examples with what is known of them; nothing is where there is no room for it.

        Args:
            run: computes what is not known yet, of texts as they stand in the log, but int64.
        """
        keys = {key_of(text): text for example in examples for text in example.texts}
        lacking = [_Text(key, text.input_ids) for key, text in keys.items()]
        lacking = [text for text in lacking if text.key not in self._places]
        for chunk in of_similar_length(lacking, self.at_once):
            tokens = self._num_tokens + sum(text.num_tokens for text in chunk)
            if tokens * self._layout.length <= self.max_bytes:
                ids = pad_sequence([text.ids for text in chunk], True, -1)
                self._keep(len(self.log), ids, run(ids))
                self._note(len(self.log), ids)
                self.log.append(ids.int())
        return [self._with(example) for example in examples]

    def _with(self, example: Example) -> Example:
        place = self._places.get(key_of(example))
        known = None if place is None else partial(self._read, place)
        rejected = None if example.rejected is None else self._with(example.rejected)
        return replace(example, known=known, rejected=rejected)

    def _note(self, number: int, ids: Tensor) -> None:
        start = 0
        for own in ids:
            text = own[own >= 0]
            self._places[_digest(text)] = number, start, len(text)
            start += len(text)
        self._num_tokens += start

    def _written(self, rows: Tensor) -> EncodedRows:
        return EncodedRows(tuple(self.stack), encode_stack(self.stack, rows, 0), 0)

    def _keep(self, number: int, ids: Tensor, hidden: Tensor) -> None:
        """Write down hidden states `(texts, seq, width)`.

        Raises:
            UserError: they cannot be written.
        """
        is_text = ids >= 0
        if not has_values(hidden):
            for own, length in zip(hidden, is_text.sum(1).tolist(), strict=True):
                self._formal[length] = own[:length]
            return
        rows = self._written(hidden[is_text.to(hidden.device)])
        self._starts[number] = self.first.records.end
        try:
            self.first.records.append([rows.records()])
        except OSError as error:
            raise UserError(
                f"training.cache_frozen, which writes to {tempfile.gettempdir()}",
                f"what is kept cannot be written ({error.strerror})",
                "Let TMPDIR name a folder with more room, or write training.cache_frozen=false",
            ) from error

    def _read(self, place: Place) -> Tensor:
        """Return what is known of a text, `(seq, width)`."""
        number, start, length = place
        if length in self._formal:
            return self._formal[length]
        if number not in self._starts:
            ids = self.log[number].long()
            self._keep(number, ids, self.first.run(ids))
        size = self._layout.length
        found = self.first.records.read(self._starts[number] + start * size, length * size)
        return self._layout.decode(found.view(length, size), 0).to(self.first.dtype)


@dataclass(frozen=True)
class _Text:
    key: bytes
    ids: Tensor

    @property
    def num_tokens(self) -> int:
        return len(self.ids)


def key_of(text: Example) -> bytes:
    """Return what tells a text from others, whatever it is labelled."""
    return _digest(text.input_ids)


def _digest(ids: Tensor) -> bytes:
    return blake2b(ids.numpy().tobytes(), digest_size=16).digest()
