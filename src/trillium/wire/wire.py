"""How a message becomes bytes: codec stacks up and down, and what each kind of tensor weighs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
from pydantic import BaseModel, ConfigDict, field_validator
from torch import Tensor

from trillium.component import Choice
from trillium.errors import UserError
from trillium.rng import derive_seed
from trillium.wire.arrived import Arrived
from trillium.wire.codecs import Codec
from trillium.wire.codecs.rows import FullRows, RowCodec
from trillium.wire.codecs.stack import decode_stack, encode_stack
from trillium.wire.kinds import FLAT, FLAT_KINDS, Kind, Limits, MessageError
from trillium.wire.message import Message, decode, encode, nbytes
from trillium.wire.rows import EncodedRows
from trillium.wire.soft_labels import Writer

Direction = Literal["up", "down"]


@dataclass(frozen=True)
class Packed:
    """A message, the bytes that it crosses as, and what they weigh by kind of tensor.

    Scales and indices count with their tensors, the header (names, shapes, verb, metadata) as
    control, so that the weights add up to `len(data)`.
    """

    data: bytes
    message: Message
    kinds: dict[str, int]

    @property
    def bytes_raw(self) -> int:
        """What the tensors weigh without codec and header."""
        return self.message.bytes_raw

    @property
    def largest_bytes(self) -> int:
        """What a receiver must have room for: the bytes, or the tensors that they become."""
        return max(len(self.data), nbytes(self.message.tensors))


@dataclass(frozen=True)
class Preview:
    """A message before it is sent, and what the other side will see of it.

    `message` carries what the codecs have made of it, so that nothing is encoded twice.
    """

    message: Message
    seen: Message


class Wire(BaseModel):
    """Packs and unpacks messages; both sides hold an equal one.

    The float tensors of a kind that belong together (parameters, gradients, statistics, snapshot) are
    sent as one vector, `<kind>/flat`, before the codecs: a hundred names and shapes would weigh more
    than a compressed adapter. `Message.expect` reads both forms.

    Soft labels, of the kind `logits`, stay encoded by rows on both sides of the way: see `writer` and
    `trillium.wire.message.received`.

    Attributes:
        up: codecs for what clients send, applied in order.
        down: codecs for what the server sends, applied in order.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    up: tuple[Choice[Codec], ...] = ()
    down: tuple[Choice[Codec], ...] = ()

    @field_validator("up", "down")
    @classmethod
    def _rows_first(cls, stack: tuple[Codec, ...]) -> tuple[Codec, ...]:
        for_logits = [codec for codec in stack if "logits" in codec.kinds]
        for codec in for_logits[1:]:
            if isinstance(codec, RowCodec):
                raise UserError(
                    f"codec {codec.name} after {for_logits[0].name}",
                    "it reads distributions over classes, not the output of another codec",
                    f"Write {codec.name} first, and one codec of rows alone",
                )
        return stack

    def row_codec(self, direction: Direction) -> RowCodec:
        """Return what writes the rows of soft labels; all of each in float32 without a codec."""
        return self._split("logits", direction)[0] or FullRows()

    def writer(
        self, verb: str, name: str, number: int, shape: tuple[int, int], direction: Direction
    ) -> Writer:
        """Return what encodes soft labels some rows at a time, for a message that is to come."""
        key = _key(Message(verb, meta={"round": number}), name)
        return Writer(self.row_codec(direction), *shape, key)

    def pack(self, message: Message, direction: Direction) -> Packed:
        """Apply the codecs of a direction and serialise."""
        tensors: dict[str, Tensor] = {}
        parts = self._encoded(message, direction)
        for name, labels in message.encoded.items():
            labels = labels.recoded(self.row_codec(direction), _key(message, name))
            _, rest = self._split("logits", direction)
            parts[name] = encode_stack(rest, labels.records, _key(message, name))
        for name, found in parts.items():
            tensors |= {f"{name}#{part}" if part else name: t for part, t in found.items()}
        data = encode(replace(message, tensors=tensors, encoded={}, previewed={}))
        return Packed(data, message, _weigh(tensors, len(data)))

    def unpack(self, data: bytes, direction: Direction, limits: Limits = Limits()) -> Packed:
        """Check and deserialise bytes from the other side; what codecs have written is read later.

        It raises `MessageError` if they are malformed; so does who reads a tensor that does not fit
        the codecs of this direction, or stands for more entries than the reader expects. All that is
        read of the message takes `limits.max_bytes` at most.
        """
        message = decode(data, limits)
        parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for full_name, tensor in message.tensors.items():
            name, _, part = full_name.partition("#")
            parts[name][part] = tensor
        rows: dict[str, RowCodec] = {}
        stacks: dict[str, list[Codec]] = {}
        written: dict[str, EncodedRows] = {}
        for name, found in parts.items():
            row_codec, stacks[name] = self._split(_kind(name), direction)
            if row_codec is not None:
                rows[name] = row_codec
            elif _kind(name) == "activations" and all(codec.row_wise for codec in stacks[name]):
                written[name] = EncodedRows(tuple(stacks[name]), found, _key(message, name))

        def read(name: str, most: int) -> Tensor:
            try:
                return decode_stack(stacks[name], parts[name], _key(message, name), most)
            except (KeyError, ValueError, RuntimeError, TypeError) as error:
                raise MessageError(
                    f"{name} does not fit the codecs of this side: {error!r}"
                ) from error

        kinds = _weigh(message.tensors, len(data))
        tensors = Arrived(parts, read, rows, limits.max_bytes)
        return Packed(data, Message(message.verb, tensors, message.meta, {}, written), kinds)

    def preview(self, message: Message, direction: Direction) -> Preview:
        """Say what the other side will read of the tensors of a message, without sending it.

        So a sender knows what its codecs lose. It holds to the last bit if what is sent later has the
        same verb and round; it may bring other tensors besides.
        """
        sent, seen = self._encoded(message.opened(), direction), {}
        for name, parts in sent.items():
            stack = self.stack(_kind(name), direction)
            found = decode_stack(stack, {k: t.cpu() for k, t in parts.items()}, _key(message, name))
            seen[name] = found if stack else found.clone()  # nobody else's storage
        return Preview(replace(message, previewed=sent), Message(message.verb, seen, message.meta))

    def _encoded(self, message: Message, direction: Direction) -> dict[str, Mapping[str, Tensor]]:
        return {
            name: message.previewed.get(name)
            or encode_stack(self.stack(_kind(name), direction), tensor, _key(message, name))
            for name, tensor in flattened(message.tensors).items()
        }

    def is_lossless(self, kind: Kind, direction: Direction) -> bool:
        """Whether tensors of a kind reach the other side as they are."""
        return all(codec.lossless for codec in self.stack(kind, direction))

    def fit(self, up: float | None, down: float | None) -> Wire:
        """Return the wire for a client with links of these speeds, in bits per second if known."""
        stacks = {
            "up": tuple(codec.fit(up) for codec in self.up),
            "down": tuple(codec.fit(down) for codec in self.down),
        }
        return self.model_copy(update=stacks)

    def stack(self, kind: Kind, direction: Direction) -> list[Codec]:
        """Return the codecs that tensors of a kind go through, in the order of encoding."""
        codecs: Sequence[Codec] = self.up if direction == "up" else self.down
        return [codec for codec in codecs if kind in codec.kinds]

    def _split(self, kind: Kind, direction: Direction) -> tuple[RowCodec | None, list[Codec]]:
        """Return the codec of rows of a kind, if there is one, and the codecs after it."""
        stack = self.stack(kind, direction)
        if stack and isinstance(stack[0], RowCodec):
            return stack[0], stack[1:]
        return None, stack


def flattened(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Put the tensors of each kind that may be one vector into one, by sorted name."""
    result = dict(tensors)
    for kind in FLAT_KINDS:
        names = sorted(name for name in tensors if _kind(name) == kind)
        dtypes = {tensors[name].dtype for name in names}
        if len(names) < 2 or len(dtypes) > 1 or not dtypes.pop().is_floating_point:
            continue
        assert f"{kind}/{FLAT}" not in names, f"{kind}/{FLAT} is the name of all of them"
        flat = torch.cat([result.pop(name).detach().reshape(-1) for name in names])
        result[f"{kind}/{FLAT}"] = flat
    return result


def _kind(name: str) -> Kind:
    return cast(Kind, name.split("/", 1)[0])


def _key(message: Message, name: str) -> int:
    """Return what seeds the codecs: equal on both sides and for all clients of a round."""
    number = message.meta.get("round")
    return derive_seed(number if type(number) is int else 0, message.verb, name)


def _weigh(tensors: Mapping[str, Tensor], total: int) -> dict[str, int]:
    kinds: dict[str, int] = defaultdict(int)
    for name, tensor in tensors.items():
        kinds[name.split("/", 1)[0]] += tensor.nbytes
    kinds["control"] += total - sum(kinds.values())
    return dict(sorted(kinds.items()))
