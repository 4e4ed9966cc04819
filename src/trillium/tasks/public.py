"""The public set as a message, and choices from it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from trillium.message import Message, MessageError
from trillium.tasks import Example, Task
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


def row_slices(task: Task, public: Sequence[Example]) -> dict[int, slice]:
    """Return which rows of predictions belong to which example, by its index."""
    rows, start = {}, 0
    for example in public:
        end = start + task.num_targets(example)
        rows[example.index] = slice(start, end)
        start = end
    return rows


def rows_of(slices: dict[int, slice], indices: Sequence[int]) -> Tensor:
    """Return the rows of some examples, one example after the other, int64."""
    spans = [torch.arange(slices[index].start, slices[index].stop) for index in indices]
    return torch.cat(spans) if spans else torch.zeros(0, dtype=torch.int64)


def write_mask(indices: Sequence[int], count: int) -> Tensor:
    """Return a choice from `count` examples as bits, uint8."""
    chosen = np.zeros(count, dtype=bool)
    chosen[list(indices)] = True
    return torch.from_numpy(np.packbits(chosen))


def choice(name: str, indices: Sequence[int], count: int) -> dict[str, Tensor]:
    """Return a choice as a tensor of that name; nothing where all are chosen."""
    return {} if len(indices) == count else {name: write_mask(indices, count)}


def read_mask(message: Message, name: str, count: int) -> list[int]:
    """Return the examples that are chosen in a message, sorted; all of them where nothing is said.

    Raises:
        MessageError: it is no choice from so many.
    """
    if name not in message.tensors:
        return list(range(count))
    bits = message.tensor(name, torch.uint8, (-(-count // 8),))
    chosen = np.unpackbits(bits.numpy())
    if chosen[count:].any():
        raise MessageError(f"{message.verb}: {name} chooses more examples than there are")
    return [int(index) for index in chosen[:count].nonzero()[0]]
