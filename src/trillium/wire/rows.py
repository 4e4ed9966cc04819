"""Rows that stay as codecs have written them: records of one length, each to be read alone."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from trillium.component import resolve
from trillium.wire.codecs import Codec
from trillium.wire.codecs.stack import decode_stack
from trillium.wire.kinds import DTYPES

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class EncodedRows:
    """A tensor `(rows, width)` in the form in which it crossed.

    Attributes:
        stack: what wrote it; every codec is `row_wise`.
        parts: what the codecs made of it; parts without dimensions hold for all rows.
    """

    stack: tuple[Codec, ...]
    parts: Mapping[str, Tensor]
    key: int

    @property
    def layout(self) -> Layout:
        """What a record of these rows is made of."""
        fields, constants = [], []
        for name, part in sorted(self.parts.items()):
            if part.dim():
                fields.append((name, _NAMES[part.dtype], tuple(part.shape[1:])))
            else:
                constants.append((name, _NAMES[part.dtype], part.item()))
        return Layout(self.stack, tuple(fields), tuple(constants))

    def records(self) -> Tensor:
        """Return one record for each row, uint8 `(rows, length)`."""
        found = [part for _, part in sorted(self.parts.items()) if part.dim()]
        return torch.cat([_bytes(part) for part in found], dim=1)


@dataclass(frozen=True)
class Layout:
    """What the records of some rows are made of.

    Attributes:
        fields: name, dtype and shape of what each record holds, one after the other.
        constants: name, dtype and value of what holds for all rows.
    """

    stack: tuple[Codec, ...]
    fields: tuple[tuple[str, str, tuple[int, ...]], ...]
    constants: tuple[tuple[str, str, float], ...]

    @cached_property
    def length(self) -> int:
        """The length of a record in bytes."""
        return sum(_length(dtype, shape) for _, dtype, shape in self.fields)

    def decode(self, records: Tensor, key: int) -> Tensor:
        """Return the rows `(n, width)` of some of `EncodedRows.records`, `(n, length)`."""
        parts = {name: torch.tensor(v, dtype=DTYPES[dtype]) for name, dtype, v in self.constants}
        start = 0
        for name, dtype, shape in self.fields:
            end = start + _length(dtype, shape)
            found = records[:, start:end].contiguous().view(DTYPES[dtype])
            parts[name] = found.view(len(records), *shape)
            start = end
        return decode_stack(self.stack, parts, key)

    def to_json(self) -> str:
        """Return it as JSON, which `from_json` reads."""
        stack = [codec.to_config() for codec in self.stack]
        return json.dumps([stack, self.fields, self.constants], sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Layout:
        """Return what `to_json` wrote."""
        stack, fields, constants = json.loads(text)
        codecs: list[Codec] = [resolve(Codec, config) for config in stack]
        shaped: list[Any] = [(name, dtype, tuple(shape)) for name, dtype, shape in fields]
        return cls(tuple(codecs), tuple(shaped), tuple(tuple(c) for c in constants))


def plain_rows(rows: Tensor) -> EncodedRows:
    """Return rows as no codec has changed them."""
    return EncodedRows((), {"": rows}, 0)


def _length(dtype: str, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * DTYPES[dtype].itemsize


def _bytes(part: Tensor) -> Tensor:
    rows = part.detach().cpu().contiguous()
    return rows.view(len(rows), -1).view(torch.uint8)
