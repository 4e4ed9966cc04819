"""How many bytes a message takes, found from its shapes, its codecs and the form that it crosses in.

A codec whose output does not depend on values gives its exact size. Others (entropy coders, general
compression) are tried on values of several kinds: the size for normally distributed ones is the
prediction, the smallest and the largest are its range.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from trillium.clock.waves import Weight
from trillium.plan.fakes import DEPENDS_ON_VALUES, Paper, is_fake
from trillium.wire.codecs import Codec
from trillium.wire.codecs.rows import RowCodec
from trillium.wire.codecs.stack import encode_stack
from trillium.wire.kinds import DTYPES, Kind
from trillium.wire.message import MAGIC, Message
from trillium.wire.wire import Direction, Wire, flattened

ENTRIES = 2**21  # a tensor of at most so many is encoded to see what becomes of it
SLACK = 0.01  # a range is so much wider than what was seen: other draws compress a little otherwise
_START = len(MAGIC) + 1 + 8  # magic, version, and safetensors' length of the header
# The order in which safetensors lays tensors out: by dtype, the widest first, then by name.
_ORDER = ["I64", "F64", "F32", "I32", "BF16", "F16", "I16", "I8", "U8", "BOOL"]
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class _Form:
    """The shape and dtype of one part of an encoded tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass
class Scales:
    """Weighs messages; what it has weighed once it remembers.

    Attributes:
        paper: makes the tensors without values.
        vocabulary: token ids are below it.
    """

    paper: Paper
    vocabulary: int
    _known: dict[object, list[dict[str, _Form]]] = field(default_factory=dict)

    def weigh(
        self,
        wire: Wire,
        direction: Direction,
        message: Message,
        rows: Mapping[str, tuple[int, int]] | None = None,
    ) -> Weight:
        """Return what a message weighs once it is packed.

        Args:
            message: its tensors with values or without; the number of the round in its metadata.
            rows: rows and classes of the soft labels in it, by name.
        """
        found: dict[str, list[dict[str, _Form]]] = {}
        with self.paper.running():
            flat = flattened(message.tensors)
        for name, tensor in flat.items():
            stack = wire.stack(_kind(name), direction)
            found[name] = self._encoded(stack, tensor)
        for name, (num_rows, num_classes) in (rows or {}).items():
            rest = [c for c in wire.stack("logits", direction) if not isinstance(c, RowCodec)]
            codec = wire.row_codec(direction)
            found[name] = self._rows(codec, rest, num_rows, num_classes)
        sizes = []
        for place in range(max((len(forms) for forms in found.values()), default=1)):
            parts = {
                f"{name}#{part}" if part else name: form
                for name, forms in found.items()
                for part, form in forms[min(place, len(forms) - 1)].items()
            }
            sizes.append(_weight(message, parts))
        totals = [size[0] for size in sizes]
        slack = 0.0 if min(totals) == max(totals) else SLACK
        low, high = math.floor((1 - slack) * min(totals)), math.ceil((1 + slack) * max(totals))
        return Weight(sizes[0][0], sizes[0][1], low, high)

    def _encoded(self, stack: Sequence[Codec], tensor: Tensor) -> list[dict[str, _Form]]:
        """Return the parts that codecs make of a tensor: the likely ones, then of other values."""
        form = _Form(tuple(tensor.shape), tensor.dtype)
        if not stack:
            return [{"": form}]
        if not is_fake(tensor):
            return [_forms(encode_stack(stack, tensor, 0))]
        key = (tuple(repr(codec) for codec in stack), form)
        if key not in self._known:
            self._known[key] = self._tried(stack, form)
        return self._known[key]

    def _tried(self, stack: Sequence[Codec], form: _Form) -> list[dict[str, _Form]]:
        if math.prod(form.shape) <= ENTRIES:
            return self._draws(stack, form)
        try:
            with self.paper.throughout():
                tensor = self.paper.empty(*form.shape, dtype=form.dtype)
                return [_forms(encode_stack(stack, tensor, 0))]
        except (*DEPENDS_ON_VALUES, NotImplementedError, RuntimeError, TypeError, ValueError):
            few = _fewer(form)
            factor = math.prod(form.shape) / math.prod(few.shape)
            return [
                {part: _grown(found, factor) for part, found in forms.items()}
                for forms in self._draws(stack, few)
            ]

    def _draws(self, stack: Sequence[Codec], form: _Form) -> list[dict[str, _Form]]:
        with torch._C._DisableTorchDispatch():  # they have values: a plan need not look at them
            found = [_forms(encode_stack(stack, tensor, 0)) for tensor in self._values(form)]
        return found[:1] if all(forms == found[0] for forms in found) else found

    def _values(self, form: _Form) -> list[Tensor]:
        """Return real tensors of a form: as they probably are, then extremes."""
        draw = torch.Generator().manual_seed(0)
        zeros = torch.zeros(form.shape, dtype=form.dtype)
        if not form.dtype.is_floating_point:
            top = 2 if form.dtype in (torch.bool, torch.uint8) else self.vocabulary
            some = torch.randint(0, max(top, 1), form.shape, generator=draw)
            return [some.to(form.dtype), zeros]
        normal = torch.randn(form.shape, generator=draw)
        return [normal.to(form.dtype), zeros, normal.pow(5).to(form.dtype)]

    def _rows(
        self, codec: RowCodec, rest: Sequence[Codec], num_rows: int, num_classes: int
    ) -> list[dict[str, _Form]]:
        """Return the parts of soft labels."""
        key = (repr(codec), tuple(repr(c) for c in rest), num_rows, num_classes)
        if key in self._known:
            return self._known[key]
        sized = codec.sized(num_rows, num_classes)
        if not rest:
            one = sized.encode_rows(torch.zeros(1, num_classes).log_softmax(-1), 0)
            self._known[key] = [{"": _Form((num_rows, *one.shape[1:]), one.dtype)}]
            return self._known[key]
        # These look at all rows together.
        count = min(num_rows, max(1, ENTRIES // num_classes))
        more = num_rows / count if count else 1.0  # nothing may be sent, where clients hold it all
        draw = torch.Generator().manual_seed(0)
        found = []
        for spread in (3.0, 0.1, 20.0):  # of logits: as they probably are, unsure, sure
            logits = spread * torch.randn(count, num_classes, generator=draw)
            records = sized.encode_rows(logits.log_softmax(-1), 0)
            forms = _forms(encode_stack(rest, records, 0))
            found.append({part: _grown(form, more) for part, form in forms.items()})
        found = found[:1] if all(forms == found[0] for forms in found) else found
        self._known[key] = found
        return found


def encoded_length(message: Message) -> int:
    """Return `len(encode(message))` without making the bytes."""
    return _weight(message, _forms(message.tensors))[0]


def _weight(message: Message, parts: Mapping[str, _Form]) -> tuple[int, dict[str, int]]:
    """Return the length of a message of these parts, and its bytes by kind."""
    envelope = json.dumps([message.verb, message.meta], sort_keys=True, separators=(",", ":"))
    header: dict[str, object] = {"__metadata__": {"m": envelope}}
    end = 0
    for name, form in sorted(parts.items(), key=_place):
        header[name] = {
            "dtype": _NAMES[form.dtype],
            "shape": list(form.shape),
            "data_offsets": [end, end + form.nbytes],
        }
        end += form.nbytes
    length = len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
    total = _START + -(-length // 8) * 8 + end
    kinds: dict[str, int] = {}
    for name, form in parts.items():
        kinds[_kind(name)] = kinds.get(_kind(name), 0) + form.nbytes
    kinds["control"] = kinds.get("control", 0) + total - end
    return total, dict(sorted(kinds.items()))


def _place(item: tuple[str, _Form]) -> tuple[int, str]:
    return _ORDER.index(_NAMES[item[1].dtype]), item[0]


def _kind(name: str) -> Kind:
    return cast(Kind, name.split("/", 1)[0])


def _forms(parts: Mapping[str, Tensor]) -> dict[str, _Form]:
    return {part: _Form(tuple(tensor.shape), tensor.dtype) for part, tensor in parts.items()}


def _fewer(form: _Form) -> _Form:
    """Return a form of fewer entries: fewer rows, or a shorter vector."""
    width = form.shape[-1] if len(form.shape) > 1 else 1
    count = max(1, ENTRIES // width)
    return _Form((count,) if len(form.shape) < 2 else (count, width), form.dtype)


def _grown(form: _Form, factor: float) -> _Form:
    """Return the form of a part for a larger tensor; small parts (shapes, scalars) stay."""
    if math.prod(form.shape) <= 8:
        return form
    return _Form((math.ceil(form.shape[0] * factor), *form.shape[1:]), form.dtype)
