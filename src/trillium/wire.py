"""How a message becomes bytes: codec stacks up and down, and what each kind of tensor weighs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from trillium.codecs import Codec
from trillium.component import Choice
from trillium.message import Limits, Message, MessageError, decode, encode

Direction = Literal["up", "down"]


@dataclass(frozen=True)
class Packed:
    """A message, the bytes that it crosses as, and what they weigh.

    Attributes:
        data: what crosses.
        message: what was packed, or what was unpacked on the other side.
        kinds: bytes of `data` by kind of tensor, scales and indices included; the header (names,
            shapes, verb, metadata) counts as control, so that the values add up to `len(data)`.
    """

    data: bytes
    message: Message
    kinds: dict[str, int]

    @property
    def bytes_raw(self) -> int:
        """What the tensors weigh without codec and header."""
        return sum(tensor.nbytes for tensor in self.message.tensors.values())


class Wire(BaseModel):
    """Packs and unpacks messages; both sides hold an equal one.

    Attributes:
        up: codecs for what clients send, applied in order.
        down: codecs for what the server sends, applied in order.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    up: tuple[Choice[Codec], ...] = ()
    down: tuple[Choice[Codec], ...] = ()

    def pack(self, message: Message, direction: Direction) -> Packed:
        """Apply the codecs of a direction and serialise."""
        tensors: dict[str, Tensor] = {}
        for name, tensor in message.tensors.items():
            for part, encoded in _encode(self._stack(name, direction), tensor).items():
                tensors[f"{name}#{part}" if part else name] = encoded
        data = encode(Message(message.verb, tensors, message.meta))
        return Packed(data, message, _weigh(tensors, len(data)))

    def unpack(self, data: bytes, direction: Direction, limits: Limits = Limits()) -> Packed:
        """Check and deserialise bytes from the other side, and undo the codecs.

        Raises:
            MessageError: the bytes are malformed or do not fit the codecs of this direction.
        """
        message = decode(data, limits)
        kinds = _weigh(message.tensors, len(data))
        parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for full_name, tensor in message.tensors.items():
            name, _, part = full_name.partition("#")
            parts[name][part] = tensor
        tensors = {
            name: _decode(self._stack(name, direction), name, found)
            for name, found in parts.items()
        }
        return Packed(data, Message(message.verb, tensors, message.meta), kinds)

    def _stack(self, name: str, direction: Direction) -> list[Codec]:
        kind = name.split("/", 1)[0]
        stack: Sequence[Codec] = self.up if direction == "up" else self.down
        return [codec for codec in stack if kind in codec.kinds]


def _weigh(tensors: Mapping[str, Tensor], total: int) -> dict[str, int]:
    kinds: dict[str, int] = defaultdict(int)
    for name, tensor in tensors.items():
        kinds[name.split("/", 1)[0]] += tensor.nbytes
    kinds["control"] += total - sum(kinds.values())
    return dict(sorted(kinds.items()))


def _encode(stack: Sequence[Codec], tensor: Tensor) -> dict[str, Tensor]:
    parts: dict[str, Tensor] = {"": tensor}
    for position, codec in enumerate(stack):
        if not parts[""].is_floating_point():
            raise MessageError(f"codec {codec.name} needs floats, but gets {parts[''].dtype}")
        for part, encoded in codec.encode(parts.pop("")).items():
            parts[f"{position}.{part}" if part else ""] = encoded
    return parts


def _decode(stack: Sequence[Codec], name: str, parts: Mapping[str, Tensor]) -> Tensor:
    left: dict[str, Any] = dict(parts)
    try:
        for position, codec in reversed(list(enumerate(stack))):
            prefix = f"{position}."
            own = {
                key.removeprefix(prefix): left.pop(key)
                for key in list(left)
                if key.startswith(prefix)
            }
            left[""] = codec.decode({"": left.pop(""), **own})
        tensor: Tensor = left.pop("")
    except (KeyError, ValueError, RuntimeError, TypeError) as error:
        raise MessageError(f"{name} does not fit the codecs of this side: {error!r}") from error
    if left:
        raise MessageError(f"{name} has parts that no codec of this side knows: {sorted(left)[:3]}")
    return tensor
