"""Rows of different lengths, padded for a model and without padding for the way.

Batches are padded on the right (`trillium.tasks.batches`), so a mask is made again from the lengths,
and position ids by the model from the mask; neither has to be sent.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trillium.tasks.batches import padded
from trillium.wire.kinds import MessageError
from trillium.wire.message import Message

LENGTHS = "control/lengths"  # of the rows of a batch, int32 `(rows,)`


def strip(rows: Tensor, mask: Tensor) -> Tensor:
    """Return the entries `(tokens, …)` of rows `(rows, seq, …)` that are no padding."""
    return rows[mask.bool()]


def spread(flat: Tensor, mask: Tensor, fill: float = 0) -> Tensor:
    """Return entries `(tokens, …)` as rows `(rows, seq, …)`, `fill` where `mask` is 0."""
    rows = flat.new_full((*mask.shape, *flat.shape[1:]), fill)
    rows[mask.bool()] = flat
    return rows


def mask_of(lengths: Sequence[int] | Tensor) -> Tensor:
    """Return the attention mask `(rows, seq)` int64 of a batch of rows so long, padded as any batch."""
    sizes = torch.as_tensor(lengths)
    return (torch.arange(padded(int(sizes.max()))) < sizes[:, None]).long()


def lengths_of(mask: Tensor) -> dict[str, Tensor]:
    """Return what tells the other side the lengths of the rows of a batch."""
    return {LENGTHS: mask.sum(1).int()}


def read_lengths(message: Message, most_rows: int, longest: int) -> Tensor:
    """Return the lengths of a batch that a peer sends, int64 `(rows,)`.

    Raises:
        MessageError: they are missing, or the batch is larger than agreed.
    """
    lengths = message.tensor(LENGTHS, torch.int32, (None,)).long()
    if not 0 < len(lengths) <= most_rows:
        raise MessageError(f"{message.verb}: {len(lengths)} rows, agreed are 1 to {most_rows}")
    if int(lengths.min()) < 1 or int(lengths.max()) > longest:
        raise MessageError(
            f"{message.verb}: rows of {int(lengths.min())} to {int(lengths.max())} tokens, agreed are "
            f"1 to {longest}"
        )
    return lengths
