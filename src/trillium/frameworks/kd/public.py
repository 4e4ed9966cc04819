"""The public set as a message, and choices from it.

It crosses as text, which every client tokenises as its own model wants it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor

from trillium.tasks import Example, Task
from trillium.wire.kinds import MessageError
from trillium.wire.message import Message

if TYPE_CHECKING:
    from datasets import Dataset

# The columns that a public set may have, by the form of the task's data.
_COLUMNS: Final[dict[str, tuple[frozenset[str], ...]]] = {
    "classification": (frozenset({"text"}), frozenset({"text", "label"})),
    "multi_label": (frozenset({"text"}), frozenset({"text", "label"})),
    "regression": (frozenset({"text"}), frozenset({"text", "label"})),
    "token_classification": (
        frozenset({"text"}),
        frozenset({"text", "words"}),
        frozenset({"text", "words", "label"}),
    ),
    "causal_lm": (
        frozenset({"prompt", "completion"}),
        frozenset({"messages"}),
        frozenset({"messages", "tools"}),
    ),
}


def encode_public(rows: Dataset, *, labelled: bool) -> Message:
    """Return the message that carries the public set."""
    # Where a row comes from is for errors of this side.
    own = {"row"} if labelled else {"row", "label"}
    names = [name for name in rows.column_names if name not in own]
    columns = {name: rows[name][:] for name in sorted(names)}
    data = json.dumps(columns, ensure_ascii=False, separators=(",", ":")).encode()
    return Message(
        "receive_public", {"public/rows": torch.frombuffer(bytearray(data), dtype=torch.uint8)}
    )


def decode_public(message: Message, data_form: str, num_classes: int) -> dict[str, list[Any]]:
    """Return the columns of the public set; `MessageError` unless it has those of the task."""
    data = message.tensor("public/rows", torch.uint8, (None,))
    try:
        columns = json.loads(data.numpy().tobytes())
    except (ValueError, RecursionError) as error:
        raise MessageError("the public set is not JSON") from error
    if not isinstance(columns, dict) or frozenset(columns) not in _COLUMNS[data_form]:
        raise MessageError(f"the public set has not the columns of {data_form}")
    if not all(isinstance(values, list) for values in columns.values()):
        raise MessageError("the public set is no table")
    if len({len(values) for values in columns.values()}) != 1:
        raise MessageError("the columns of the public set are not of one length")
    for name, values in columns.items():
        is_value = _LABELS[data_form] if name == "label" else _is_value
        if not all(is_value(name, value, num_classes) for value in values):
            raise MessageError(f"the public set has a {name} that is none")
    if {"words", "label"} <= columns.keys():
        pairs = zip(columns["words"], columns["label"], strict=True)
        if any(len(words) != len(tags) for words, tags in pairs):
            raise MessageError("the public set has not a tag for each word")
    return columns


def _is_class(column: str, value: Any, num_classes: int) -> bool:
    return type(value) is int and 0 <= value < num_classes


def _are_classes(column: str, value: Any, num_classes: int) -> bool:
    is_list = isinstance(value, list) and len(value) <= num_classes
    return is_list and all(_is_class(column, item, num_classes) for item in value)


def _are_tags(column: str, value: Any, num_classes: int) -> bool:
    return isinstance(value, list) and all(_is_class(column, n, num_classes) for n in value)


def _are_places(value: Any) -> bool:
    """Whether a value is a list of `[start, end]`."""
    return isinstance(value, list) and all(
        isinstance(own, list) and len(own) == 2 and all(type(at) is int and at >= 0 for at in own)
        for own in value
    )


def _are_numbers(column: str, value: Any, num_classes: int) -> bool:
    is_list = isinstance(value, list) and len(value) == num_classes
    return is_list and all(type(item) is float and math.isfinite(item) for item in value)


_LABELS: Final = {
    "classification": _is_class,
    "multi_label": _are_classes,
    "regression": _are_numbers,
    "token_classification": _are_tags,
}


def _is_value(column: str, value: Any, num_classes: int) -> bool:
    if column == "words":
        return _are_places(value)
    if column == "tools":
        return isinstance(value, str) and _is_json(value, list)
    if column != "messages":
        return isinstance(value, str)
    return isinstance(value, list) and all(
        isinstance(turn, dict)
        and turn.keys() | {"more"} == {"role", "content", "more"}
        and all(isinstance(part, str) for part in turn.values())
        and _is_json(turn.get("more", ""), dict)
        for turn in value
    )


def _is_json(text: str, kind: type[list[Any]] | type[dict[str, Any]]) -> bool:
    """Whether a text is empty, or JSON of a kind."""
    try:
        return not text or isinstance(json.loads(text), kind)
    except (ValueError, RecursionError):
        return False


def row_slices(task: Task, public: Sequence[Example]) -> dict[int, slice]:
    """Return which rows of predictions belong to which example, by its index."""
    rows, start = {}, 0
    for example in public:
        end = start + task.num_targets(example)
        rows[example.index] = slice(start, end)
        start = end
    return rows


def write_mask(indices: Sequence[int], count: int) -> Tensor:
    """Return a choice from `count` examples as bits, uint8."""
    chosen = np.zeros(count, dtype=bool)
    chosen[list(indices)] = True
    return torch.from_numpy(np.packbits(chosen))


def choice(name: str, indices: Sequence[int], count: int) -> dict[str, Tensor]:
    """Return a choice as a tensor of that name; nothing where all are chosen."""
    return {} if len(indices) == count else {name: write_mask(indices, count)}


def read_mask(message: Message, name: str, count: int) -> list[int]:
    """Return the examples that are chosen in a message, sorted; all of them where nothing is said."""
    if name not in message.tensors:
        return list(range(count))
    bits = message.tensor(name, torch.uint8, (-(-count // 8),))
    chosen = np.unpackbits(bits.numpy())
    if chosen[count:].any():
        raise MessageError(f"{message.verb}: {name} chooses more examples than there are")
    return [int(index) for index in chosen[:count].nonzero()[0]]


def examples_at(examples: Sequence[Example], places: Sequence[int]) -> list[Example]:
    """Return the examples at some places of a list, in this order."""
    return [examples[place] for place in places]
