"""Codecs: one lossy or lossless step between a tensor and the parts of it that are sent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from trillium.component import Component
from trillium.wire.kinds import NATURES, Kind, Nature


class Codec(Component, kind="codec", package="trillium.wire.codecs"):
    """Turns a float tensor into parts that are smaller, and back.

    A codec applies to every tensor of its `kinds`. The part named `""` takes the tensor's place, and a
    later codec of the stack may encode it again; further parts (scales, indices) are sent beside it.
    A codec has no memory: equal tensors and keys give equal parts.

    Class variables:
        lossless: what is decoded is what was encoded, bit by bit.
        any_dtype: it also encodes integers; the others are given floats alone.
        row_wise: each row `(…, n)` of the last dimension is written by itself: all parts have the
            tensor's leading shape, but for those without dimensions, which hold for all rows.
        suits: what it may be applied to; the others it would leave too little of.

    Attributes:
        kinds: which kinds of tensors it encodes; the others pass untouched. Statistics are not among
            them by default: the solution of a linear system magnifies an error in it.
    """

    lossless: ClassVar[bool] = False
    any_dtype: ClassVar[bool] = False
    row_wise: ClassVar[bool] = False
    suits: ClassVar[frozenset[Nature]] = NATURES

    kinds: tuple[Kind, ...] = ("parameters", "gradients", "logits", "activations")

    @property
    def expands(self) -> bool:
        """Whether the error may exceed the tensor itself, so that error feedback would diverge."""
        return False

    def fit(self, bits_per_second: float | None) -> Codec:
        """Return the codec for a link of this speed; most are the same for every link."""
        return self

    def encode(self, tensor: Tensor, key: int) -> dict[str, Tensor]:
        """Return the parts to send of a tensor that is never written to; the part `""` must be there.

        The key seeds what is drawn at random: the receiver has it, and so have all clients of a
        round.
        """
        raise NotImplementedError

    def decode(self, parts: Mapping[str, Tensor], key: int) -> Tensor:
        """Return the tensor, of the shape that was encoded; float32, if the codec is not lossless.

        Parts, which come from a peer, that do not fit together are a `ValueError`, `KeyError`,
        `TypeError` or `RuntimeError`. Nothing of the size they claim is allocated before that is
        known, nor more entries than `parts.most_of` says.
        """
        raise NotImplementedError
