"""Several codecs in a row: each encodes the main part of the one before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from trillium.wire.codecs import Codec
from trillium.wire.codecs.parts import LIMITS, Parts
from trillium.wire.kinds import MessageError


def encode_stack(stack: Sequence[Codec], tensor: Tensor, key: int) -> dict[str, Tensor]:
    """Return the parts of a tensor; those that codec `i` sends beside the main part are `i.<part>`."""
    parts: dict[str, Tensor] = {"": tensor}
    for position, codec in enumerate(stack):
        if not (parts[""].is_floating_point() or codec.any_dtype):
            raise MessageError(f"codec {codec.name} needs floats, but gets {parts[''].dtype}")
        for part, encoded in codec.encode(parts.pop(""), key).items():
            parts[f"{position}.{part}" if part else ""] = encoded
    return parts


def decode_stack(
    stack: Sequence[Codec], parts: Mapping[str, Tensor], key: int, most: int | None = None
) -> Tensor:
    """Return the tensor that the parts stand for, of at most so many entries.

    What a codec makes of a tensor has no more entries than that: `most` holds on the way, too. It
    raises what `Codec.decode` does.
    """
    most = LIMITS.max_bytes // 4 if most is None else most
    left = dict(parts)
    for position, codec in reversed(list(enumerate(stack))):
        prefix = f"{position}."
        own = {
            part.removeprefix(prefix): left.pop(part)
            for part in list(left)
            if part.startswith(prefix)
        }
        left[""] = codec.decode(Parts({"": left.pop(""), **own}, most), key)
    tensor = left.pop("")
    if left:
        raise ValueError(f"parts that no codec of this side knows: {sorted(left)[:3]}")
    if tensor.numel() > most:
        raise ValueError(f"{tensor.numel()} entries, at most {most} are expected")
    return tensor
