"""Codecs of soft labels: each row, a distribution over classes, becomes one record of fixed length.

Rows are encoded and decoded some at a time, so nothing of the size samples x tokens x vocabulary need
exist. What is here is shared by them: indices in one to three bytes, logarithms in one to four.
"""

from __future__ import annotations

from typing import ClassVar, Final, Literal

import torch
from torch import Tensor

from trillium.wire.codecs import Codec
from trillium.wire.kinds import Nature

Precision = Literal["uint8", "float16", "float32"]

LEAST: Final = -80.0  # a log-probability in place of minus infinity; its exponential is above zero
_SPAN: Final = 20.0  # what one byte covers: probabilities down to 2e-9
_WIDTHS: Final = {"uint8": 1, "float16": 2, "float32": 4}


class RowCodec(Codec):
    """A codec for the kind `logits`, which comes first in a stack; at most one of them.

    A later codec that takes any dtype, such as `zstd`, gets the records of all rows as one tensor.
    """

    suits: ClassVar[frozenset[Nature]] = frozenset({"log_probabilities"})
    unbiased: ClassVar[bool] = False  # the mean of what is decoded is what was encoded

    kinds: tuple[Literal["logits"], ...] = ("logits",)

    def sized(self, num_rows: int, num_classes: int) -> RowCodec:
        """Return the codec for a message of so many rows; most are the same for every message."""
        return self

    def encode_rows(self, log_probs: Tensor, key: int) -> Tensor:
        """Return records `(rows, length)` of normalised log-probabilities, each by its row and key."""
        raise NotImplementedError

    def check(self, records: Tensor, num_classes: int) -> None:
        """Raise `ValueError` for records, which come from a peer, that `decode_rows` could not read."""
        raise NotImplementedError

    def decode_rows(self, records: Tensor, num_classes: int) -> Tensor:
        """Return normalised log-probabilities `(rows, classes)` float32 of checked records."""
        raise NotImplementedError

    def named(self, records: Tensor, num_classes: int) -> Tensor | None:
        """Return which classes a record tells apart, bool `(rows, classes)`; `None` if all.

        Of the others only the sum of the probabilities is known.
        """
        return None


class FullRows(RowCodec):
    """Every log-probability in float32: what is sent where the stack has no codec of rows."""

    def encode_rows(self, log_probs: Tensor, key: int) -> Tensor:
        """Return them as they are, but for minus infinity."""
        return log_probs.float().clamp(min=LEAST).cpu()

    def check(self, records: Tensor, num_classes: int) -> None:
        """Refuse what is not log-probabilities of that many classes."""
        if not records.is_floating_point() or records.shape[1:] != (num_classes,):
            raise ValueError(
                f"{records.dtype} {tuple(records.shape)}, expected {num_classes} floats"
            )
        if not bool(
            (records.abs() <= -2 * LEAST).all()
        ):  # codecs that follow may have rounded them
            raise ValueError(f"what is no log-probability, as these are {LEAST:g} to 0")

    def decode_rows(self, records: Tensor, num_classes: int) -> Tensor:
        """Return them, normalised again."""
        return records.float().log_softmax(-1)


def index_width(num_classes: int) -> int:
    """Return how many bytes the index of a class takes."""
    return 1 if num_classes <= 2**8 else 2 if num_classes <= 2**16 else 3


def write_indices(indices: Tensor, num_classes: int) -> Tensor:
    """Return indices `(rows, n)` as bytes `(rows, n * index_width)`, the lowest byte first."""
    width = index_width(num_classes)
    places = torch.arange(0, 8 * width, 8, device=indices.device)
    return ((indices[..., None] >> places) & 255).to(torch.uint8).flatten(1).cpu()


def read_indices(data: Tensor, num_classes: int) -> Tensor:
    """Return indices `(rows, n)` int64 of bytes; `ValueError` if one is no class."""
    width = index_width(num_classes)
    parts = data.reshape(len(data), data.shape[1] // width, width).long()
    indices = (parts << torch.arange(0, 8 * width, 8)).sum(-1)
    if indices.numel() and int(indices.max()) >= num_classes:
        raise ValueError(f"class {int(indices.max())} of {num_classes}")
    return indices


def log_width(precision: Precision) -> int:
    """Return how many bytes a logarithm takes."""
    return _WIDTHS[precision]


def write_logs(log_probs: Tensor, precision: Precision) -> Tensor:
    """Return log-probabilities `(rows, n)` as bytes `(rows, n * log_width)`.

    The 256 levels of one byte are even in the square root of the logarithm: 0.7 % apart near a
    probability of 0.95, 13 % apart at 1e-8.
    """
    wide = log_probs.detach().float().cpu().clamp(LEAST, 0.0)
    if precision == "uint8":
        return (255 * (wide.clamp(min=-_SPAN) / -_SPAN).sqrt()).round().to(torch.uint8)
    dtype = torch.float16 if precision == "float16" else torch.float32
    return wide.to(dtype).contiguous().view(torch.uint8).reshape(len(wide), -1)


def read_logs(data: Tensor, precision: Precision) -> Tensor:
    """Return log-probabilities `(rows, n)` float32; `ValueError` for what is none."""
    if precision == "uint8":
        return -_SPAN * (data.float() / 255).square()
    dtype = torch.float16 if precision == "float16" else torch.float32
    count = data.shape[1] // _WIDTHS[precision]
    aligned = data.clone(memory_format=torch.contiguous_format)
    found = aligned.view(-1).view(dtype).reshape(len(data), count).float()
    if not bool(((found >= LEAST) & (found <= 0)).all()):
        raise ValueError(f"what is no log-probability, as these are {LEAST:g} to 0")
    return found


def expect_records(records: Tensor, length: int | None = None) -> None:
    """Raise `ValueError` unless these are bytes, a record of this length for each row."""
    if records.dtype != torch.uint8 or records.dim() != 2:
        raise ValueError(f"records that are {records.dtype} {tuple(records.shape)}")
    if length is not None and records.shape[1] != length:
        raise ValueError(f"records of {records.shape[1]} bytes, expected {length}")
