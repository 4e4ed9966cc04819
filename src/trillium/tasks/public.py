"""The public set as a message, for clients that do not hold it yet."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from trillium.message import Message, MessageError
from trillium.tasks import Example
from trillium.tasks.batches import collate


def encode_public(public: Sequence[Example]) -> Message:
    """Return the message that carries the public set: token ids, lengths and labels, int32."""
    batch = collate(public, 0, torch.device("cpu"))
    return Message(
        "receive_public",
        {
            "public/input_ids": batch.input_ids.int(),
            "public/lengths": batch.attention_mask.sum(1).int(),
            "public/labels": batch.labels.int(),
        },
    )


def decode_public(message: Message, vocabulary: int) -> list[Example]:
    """Return the public set of a message.

    Raises:
        MessageError: token ids or lengths are out of range.
    """
    tokens = message.tensor("public/input_ids", torch.int32, (None, None)).long()
    lengths = message.tensor("public/lengths", torch.int32, (len(tokens),)).tolist()
    labels = message.tensors.get("public/labels", torch.empty(0)).long()
    if labels.shape not in (tokens.shape[:1], tokens.shape):
        raise MessageError(f"public labels are {tuple(labels.shape)}")
    if not all(1 <= length <= tokens.shape[1] for length in lengths):
        raise MessageError("public lengths are out of range")
    if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocabulary:
        raise MessageError("public token ids are outside the vocabulary")
    return [
        Example(
            row, tokens[row, :length], labels[row] if labels.dim() == 1 else labels[row, :length]
        )
        for row, length in enumerate(lengths)
    ]
