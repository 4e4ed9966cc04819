"""Message <-> bytes: the only thing that crosses between a client and the server.

Layout: `b"TRM"`, one version byte, then one safetensors file whose `__metadata__` carries the verb and
the metadata as JSON. Nothing is pickled. Tensors keep their dtype (bfloat16 too) and are written in
sorted order, so equal messages give equal bytes on every machine.

Every tensor is named `kind/name`; the kind says what the bytes are for and is what the ledger sums.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import safetensors.torch
import torch
from torch import Tensor

from trillium.wire.addend import Addend
from trillium.wire.arrived import Arrived
from trillium.wire.codecs.rows import FullRows
from trillium.wire.kinds import DTYPES, FLAT, KINDS, Kind, Limits, MessageError, has_values
from trillium.wire.rows import EncodedRows
from trillium.wire.soft_labels import SoftLabels

Meta = dict[str, Any]

MAGIC: Final = b"TRM"
VERSION: Final = 1
FAR: Final = 10_000  # times the norm of what a tensor changes, or replaces
_NAME = re.compile(rf"(?:{'|'.join(KINDS)})/[\w.#/-]{{1,500}}")
_VERB = re.compile(r"[a-z][a-z0-9_]{0,63}")
_START = len(MAGIC) + 1  # magic and version; the safetensors file follows


@dataclass(frozen=True)
class Message:
    """A verb, named tensors and small JSON metadata.

    Attributes:
        meta: small JSON values; floats that vary in printed length belong into a `control/` tensor, so
            that the size of a message does not depend on the values in it.
        encoded: tensors of the kind `logits` that stay as a codec of rows has written them, until they
            are read some rows at a time (`received`).
        written: of a message that came, the activations once more, as they crossed, where their codecs
            write every row by itself.
        previewed: of a message to send, what codecs have made of some tensors already (`Wire.preview`).
        summed: of a message to send, what the receiver only adds up; see `opened`.
    """

    verb: str
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    meta: Meta = field(default_factory=dict)
    encoded: Mapping[str, SoftLabels] = field(default_factory=dict)
    written: Mapping[str, EncodedRows] = field(default_factory=dict)
    previewed: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    summed: Addend | None = None

    def opened(self) -> Message:
        """Return it with what is only added up among its tensors, each for all to see."""
        if self.summed is None:
            return self
        tensors = {**self.tensors, **self.summed.opened()}
        encoded = {**self.encoded, **self.summed.labels}
        return replace(self, tensors=tensors, encoded=encoded, summed=None)

    @property
    def bytes_raw(self) -> int:
        """What the tensors weigh before the codecs; log-probabilities as float32."""
        rows = sum(4 * len(found) * found.num_classes for found in self.encoded.values())
        return rows + nbytes(self.tensors)

    @property
    def is_finite(self) -> bool:
        """Whether nothing of it is NaN or infinite, but for what steers."""
        rows = [labels.records for labels in self.encoded.values()]
        plain = [t for name, t in self.tensors.items() if not name.startswith("control/")]
        return all(map(_is_finite, (*rows, *plain)))

    def group(self, kind: Kind) -> dict[str, Tensor]:
        """Return the tensors of one kind, by the name behind the kind."""
        prefix = f"{kind}/"
        return {
            name.removeprefix(prefix): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(prefix)
        }

    def expect(self, kind: Kind, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of one kind, in the dtypes of `like`, after checking them.

        They may have come as the single vector `<kind>/flat`, which holds the entries of all
        tensors one after the other, sorted by name. A name, shape, dtype or value that is wrong is
        a `MessageError`.
        """
        assert FLAT not in like, f"{kind}/{FLAT} is the name of all of them"
        prefix = f"{kind}/"
        names = {name.removeprefix(prefix) for name in self.tensors if name.startswith(prefix)}
        if names == {FLAT}:
            flat = self._read(prefix + FLAT, sum(tensor.numel() for tensor in like.values()))
            found = self._unflattened(kind, flat, like)
            return {name: self._checked(kind, name, found[name], like[name]) for name in like}
        if names != like.keys():
            missing, unknown = like.keys() - names, names - like.keys()
            raise MessageError(
                f"{self.verb}: {kind} lack {sorted(missing)[:3]} and have unknown {sorted(unknown)[:3]}"
            )
        return {
            name: self._checked(kind, name, self._read(prefix + name, tensor.numel()), tensor)
            for name, tensor in like.items()
        }

    def near(
        self, kind: Kind, like: Mapping[str, Tensor], *, replaces: bool = False
    ) -> dict[str, Tensor]:
        """Return what `expect` does; `MessageError` if it is far larger than what it belongs to.

        The l2 norm of all of it may be `FAR` times that of `like`, and of 1 where that is less; a
        hundredth of that if it replaces it.
        """
        found = self.expect(kind, like)
        if all(has_values(tensor) for tensor in (*found.values(), *like.values())):
            size, known = _norm(found), max(_norm(like), 1.0)
            if size > (FAR / 100 if replaces else FAR) * known:
                raise MessageError(
                    f"{self.verb}: {kind} have the norm {size:.3g}, what they belong to has {known:.3g}"
                )
        return found

    def _read(self, name: str, most: int) -> Tensor:
        """Return a tensor, of at most so many entries if it is still to be decoded."""
        tensors = self.tensors
        return tensors.read(name, most) if isinstance(tensors, Arrived) else tensors[name]

    def _unflattened(
        self, kind: str, flat: Tensor, like: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        names = sorted(like)
        sizes = [like[name].numel() for name in names]
        if not flat.is_floating_point() or flat.shape != (sum(sizes),):
            raise MessageError(
                f"{self.verb}: {kind}/{FLAT} is {flat.dtype} {tuple(flat.shape)}, "
                f"expected {sum(sizes)} floats"
            )
        # Copies: a view would keep the whole vector alive and share its storage with the others.
        return {
            name: part.reshape(like[name].shape).clone()
            for name, part in zip(names, torch.split(flat, sizes), strict=True)
        }

    def _checked(self, kind: str, name: str, tensor: Tensor, like: Tensor) -> Tensor:
        if tensor.shape != like.shape:
            raise MessageError(
                f"{self.verb}: {kind}/{name} is {tuple(tensor.shape)}, expected {tuple(like.shape)}"
            )
        if tensor.is_floating_point() != like.is_floating_point():
            raise MessageError(
                f"{self.verb}: {kind}/{name} is {tensor.dtype}, expected {like.dtype}"
            )
        if not _is_finite(tensor):
            raise MessageError(f"{self.verb}: {kind}/{name} holds NaN or infinity")
        return tensor.to(like.dtype)

    def tensor(
        self, name: str, dtype: torch.dtype, shape: tuple[int | None, ...], *, signed: bool = True
    ) -> Tensor:
        """Return one tensor; `MessageError` unless dtype, shape (`None` is any size), values fit.

        Args:
            signed: whether values may be below zero.
        """
        if name not in self.tensors:
            raise MessageError(f"{self.verb}: {name} is missing")
        tensor = self._sized(name, shape)
        fits = tensor.dim() == len(shape) and all(
            want is None or want == have for want, have in zip(shape, tensor.shape, strict=True)
        )
        if tensor.dtype != dtype or not fits:
            raise MessageError(
                f"{self.verb}: {name} is {tensor.dtype} {tuple(tensor.shape)}, expected {dtype} {shape}"
            )
        if not _is_finite(tensor):
            raise MessageError(f"{self.verb}: {name} holds NaN or infinity")
        if not signed and has_values(tensor) and bool((tensor < 0).any()):
            raise MessageError(f"{self.verb}: {name} holds {float(tensor.min()):g}, below zero")
        return tensor

    def _sized(self, name: str, shape: tuple[int | None, ...]) -> Tensor:
        """Return a tensor of no more entries than a shape has, where it says so."""
        sizes = [size for size in shape if size is not None]
        return (
            self._read(name, math.prod(sizes)) if len(sizes) == len(shape) else self.tensors[name]
        )

    def floats(self, name: str, shape: tuple[int | None, ...]) -> Tensor:
        """Return one tensor of any floating dtype, else checked as `tensor` does."""
        dtype = self._sized(name, shape).dtype if name in self.tensors else torch.float32
        if not dtype.is_floating_point:
            raise MessageError(f"{self.verb}: {name} is {dtype}, expected floats")
        return self.tensor(name, dtype, shape)

    def scalar(self, name: str) -> float:
        """Return a float64 scalar such as `control/weight`."""
        return float(self.tensor(name, torch.float64, ()))

    def not_negative(self, name: str) -> float:
        """Return a float64 scalar that must not be below zero, such as a squared norm."""
        return float(self.tensor(name, torch.float64, (), signed=False))

    def positive(self, name: str) -> float:
        """Return a float64 scalar that must be above zero, such as a weight."""
        value = self.scalar(name)
        if value <= 0:
            raise MessageError(f"{self.verb}: {name} is {value}, not above zero")
        return value


def _norm(tensors: Mapping[str, Tensor]) -> float:
    wide = [torch.linalg.vector_norm(t, dtype=torch.float64) for t in tensors.values()]
    return math.hypot(*map(float, wide))


def nbytes(tensors: Mapping[str, Tensor]) -> int:
    """Return what tensors weigh; those that are still to be decoded as they came."""
    if isinstance(tensors, Arrived):
        return tensors.nbytes
    return sum(tensor.nbytes for tensor in tensors.values())


def _is_finite(tensor: Tensor) -> bool:
    """Whether nothing in a tensor is NaN or infinite."""
    if not tensor.is_floating_point() or not has_values(tensor):
        return True
    if tensor.numel() <= 8:  # of so few, Python is faster than the operations on tensors
        return all(map(math.isfinite, tensor.flatten().tolist()))
    return bool(torch.isfinite(tensor).all())


def scalar(value: float) -> Tensor:
    """Return a number as a float64 scalar tensor, which takes eight bytes whatever its value."""
    return torch.tensor(value, dtype=torch.float64)


def named(kind: Kind, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Prefix names with their kind: `{"a": t}` becomes `{"parameters/a": t}`."""
    return {f"{kind}/{name}": tensor for name, tensor in tensors.items()}


def encode(message: Message) -> bytes:
    """Turn a message into bytes; equal messages give equal bytes."""
    assert not message.encoded, "the wire makes tensors of what is encoded by rows"
    assert message.summed is None, "it was not said how what is added up is to cross"
    assert _VERB.fullmatch(message.verb), message.verb
    for name, tensor in message.tensors.items():
        assert _NAME.fullmatch(name), name
        assert tensor.dtype in DTYPES.values(), f"{name} is {tensor.dtype}"
    # One metadata entry only: safetensors keeps entries in a hash map, whose order is not fixed.
    envelope = json.dumps([message.verb, message.meta], sort_keys=True, separators=(",", ":"))
    tensors = {
        name: message.tensors[name].detach().cpu().contiguous() for name in sorted(message.tensors)
    }
    body = safetensors.torch.save(tensors, metadata={"m": envelope})
    return MAGIC + bytes([VERSION]) + body


def decode(data: bytes, limits: Limits = Limits()) -> Message:
    """Check all of a peer's bytes and return the message; `MessageError` if they are none."""
    header = _checked_header(data, limits)
    try:
        verb, meta = json.loads(header.pop("__metadata__")["m"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise MessageError("the message has no readable verb and metadata") from error
    if not isinstance(verb, str) or not _VERB.fullmatch(verb) or not isinstance(meta, dict):
        raise MessageError("the message has a malformed verb or metadata")
    if len(header) > limits.max_tensors:
        raise MessageError(f"{len(header)} tensors, at most {limits.max_tensors} are accepted")
    for name, info in header.items():
        _check_tensor(name, info, limits)
    try:
        return Message(verb, safetensors.torch.load(data[_START:]), meta)
    except Exception as error:  # the library raises its own type, and ValueError, by version
        raise MessageError(f"unreadable tensors: {error}") from error


def _checked_header(data: bytes, limits: Limits) -> dict[str, Any]:
    if len(data) > limits.max_bytes:
        raise MessageError(f"{len(data)} bytes, at most {limits.max_bytes} are accepted")
    if len(data) < _START + 8 or data[: len(MAGIC)] != MAGIC:
        raise MessageError("these bytes are not a Trillium message")
    if data[len(MAGIC)] != VERSION:
        raise MessageError(f"message version {data[len(MAGIC)]}, this side speaks {VERSION}")
    length = int.from_bytes(data[_START : _START + 8], "little")
    if length > min(limits.max_header_bytes, len(data) - _START - 8):
        raise MessageError(f"the header claims {length} bytes, more than there are or are accepted")
    try:
        header = json.loads(data[_START + 8 : _START + 8 + length])
    except (ValueError, RecursionError) as error:
        raise MessageError("the header is not JSON") from error
    if not isinstance(header, dict):
        raise MessageError("the header is not a JSON object")
    return header


def _check_tensor(name: str, info: Any, limits: Limits) -> None:
    if not _NAME.fullmatch(name):
        raise MessageError(f"tensor name {name[:80]!r} is not kind/name with a known kind")
    try:
        dtype, shape, (begin, end) = info["dtype"], info["shape"], info["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise MessageError(f"{name}: malformed header entry") from error
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise MessageError(f"{name}: dtype {dtype!r} is not accepted")
    if not isinstance(shape, list) or len(shape) > limits.max_dims:
        raise MessageError(f"{name}: malformed shape")
    numbers = [*shape, begin, end]
    if not all(type(number) is int and 0 <= number < 2**48 for number in numbers):
        raise MessageError(f"{name}: malformed shape or offsets")
    if end - begin != math.prod(shape) * DTYPES[dtype].itemsize:
        raise MessageError(f"{name}: shape and length disagree")


def received(message: Message, name: str, num_rows: int, num_classes: int) -> SoftLabels:
    """Return checked but still encoded soft labels of a message; `MessageError` if they do not fit."""
    if name in message.encoded:
        labels = replace(message.encoded[name], num_classes=num_classes)
    elif isinstance(message.tensors, Arrived) and name in message.tensors:
        codec = message.tensors.rows.get(name) or FullRows()
        longest = codec.encode_rows(torch.zeros(1, num_classes).log_softmax(-1), 0).numel()
        records = message.tensors.read(name, num_rows * longest)
        labels = SoftLabels(codec, records, num_classes)
    elif name in message.tensors:
        labels = SoftLabels(FullRows(), message.tensors[name], num_classes)
    else:
        raise MessageError(f"{message.verb}: {name} is missing")
    labels.check()
    if len(labels) != num_rows:
        raise MessageError(f"{message.verb}: {name} has {len(labels)} rows, expected {num_rows}")
    return labels
