"""Soft labels: distributions over classes, kept encoded, and decoded some rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from trillium.rng import derive_seed
from trillium.wire.codecs.rows import LEAST, RowCodec
from trillium.wire.kinds import MessageError, has_values

CHUNK: Final = 2**22  # most entries rows x classes that are decoded at once: 16 MiB as float32


def chunks(num_rows: int, num_classes: int, copies: int = 1) -> Iterator[slice]:
    """Yield slices of rows, as many at once as memory is to hold."""
    size = max(1, CHUNK // (num_classes * copies))
    for start in range(0, num_rows, size):
        yield slice(start, min(start + size, num_rows))


def rows_of(slices: Mapping[int, slice], indices: Sequence[int]) -> Tensor:
    """Return the rows of some examples, one example after the other, int64."""
    spans = [torch.arange(slices[index].start, slices[index].stop) for index in indices]
    return torch.cat(spans) if spans else torch.zeros(0, dtype=torch.int64)


def summed(log_probs: Tensor, classes: Tensor, num_classes: int) -> Tensor:
    """Return the log-probabilities of classes that are made of finer ones, `(rows, num_classes)`.

    No sum under- or overflows, and a class of one alone has its value to the last bit. `classes`
    says of each finer one which it belongs to, int64; what has no member gets `LEAST`.
    """
    shape = (len(log_probs), num_classes)
    most = log_probs.new_full(shape, LEAST).scatter_reduce_(
        1, classes.expand_as(log_probs), log_probs.detach(), "amax", include_self=True
    )
    shares = (log_probs - most[:, classes]).exp_()
    sums = log_probs.new_zeros(shape).index_add_(1, classes, shares)
    return most + sums.clamp(min=1.0).log()


@dataclass(frozen=True)
class SoftLabels:
    """Log-probabilities `(rows, classes)` as a codec has written them, in records `(rows, length)`."""

    codec: RowCodec
    records: Tensor
    num_classes: int

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.records)

    def take(self, rows: slice | Tensor) -> Tensor:
        """Return normalised log-probabilities `(n, classes)` float32 of some rows."""
        return self.codec.decode_rows(self.records[rows], self.num_classes)

    def named(self, rows: slice | Tensor) -> Tensor | None:
        """Return which classes are told apart in some rows, bool `(n, classes)`; `None` if all."""
        return self.codec.named(self.records[rows], self.num_classes)

    def joined(self, records: Sequence[Tensor]) -> SoftLabels:
        """Return rows that were written in the same way, one tensor after the other."""
        return replace(self, records=torch.cat([self.records[:0], *records]))

    def check(self) -> None:
        """Look at every record, which a peer has written; `MessageError` if one cannot be read."""
        try:
            if self.records.dim() != 2:
                raise ValueError(f"records of shape {tuple(self.records.shape)}")
            self.codec.check(self.records[:0], self.num_classes)
            length = max(self.records.shape[1], 1)
            for rows in chunks(len(self) if has_values(self.records) else 0, length):
                self.codec.check(self.records[rows], self.num_classes)
        except (ValueError, RuntimeError) as error:
            raise MessageError(f"unreadable soft labels: {error}") from error

    def recoded(self, codec: RowCodec, key: int) -> SoftLabels:
        """Return the same labels, as far as the codec keeps them, in another encoding."""
        if codec == self.codec:
            return self
        writer = Writer(codec, len(self), self.num_classes, key)
        for rows in chunks(len(self), self.num_classes):
            writer.add(self.take(rows))
        return writer.done()


@dataclass(frozen=True)
class Teacher:
    """What students learn from: soft labels for the predictions of some examples, or for some of them.

    `present` says which of all predictions these are, bool `(rows,)`. Where a student has another
    vocabulary, `classes` are those of the labels that its own belong to, int64; -1 for none.
    """

    labels: SoftLabels
    present: Tensor
    classes: Tensor | None = None

    @property
    def places(self) -> Tensor:
        """Where in the labels each prediction is, int64 `(rows,)`; -1 where there is nothing of it."""
        return (self.present.cumsum(0) - 1).where(self.present, -1)

    @property
    def num_logits(self) -> int:
        """How many logits a student has for each prediction."""
        return self.labels.num_classes if self.classes is None else len(self.classes)

    def of(self, slices: Mapping[int, slice], indices: Sequence[int]) -> Teacher:
        """Return what it says of some examples, whose predictions are those slices of the rows."""
        places = self.places[rows_of(slices, indices)]
        labels = self.labels.joined([self.labels.records[places[places >= 0]]])
        return Teacher(labels, places >= 0, self.classes)


class Writer:
    """Encodes soft labels as they come, some rows at a time."""

    def __init__(self, codec: RowCodec, num_rows: int, num_classes: int, key: int) -> None:
        self.codec, self.num_classes, self._key = codec, num_classes, key
        self._sized = codec.sized(num_rows, num_classes)
        self._records: list[Tensor] = []
        self._count = 0

    def add(self, log_probs: Tensor) -> None:
        """Encode the next rows, normalised log-probabilities `(n, classes)`."""
        if has_values(log_probs):
            self.take(self.encode(log_probs))
        else:  # none of them takes memory
            self.take([self._sized.encode_rows(log_probs.detach(), 0)])

    def encode(self, log_probs: Tensor) -> list[Tensor]:
        """Return the records of the next rows, for `take`."""
        found = []
        for rows in chunks(len(log_probs), self.num_classes):
            key = derive_seed(self._key, self._count)
            found.append(self._sized.encode_rows(log_probs[rows].detach(), key))
            self._count += rows.stop - rows.start
        return found

    def take(self, records: Sequence[Tensor]) -> None:
        """Keep the records of the next rows."""
        self._records += records

    def done(self) -> SoftLabels:
        """Return all rows."""
        if not self._records:
            empty = torch.zeros(1, self.num_classes)
            self._records.append(self._sized.encode_rows(empty.log_softmax(-1), 0)[:0])
        return SoftLabels(self.codec, torch.cat(self._records), self.num_classes)
