"""Codecs: one lossy or lossless step between a tensor and the parts of it that are sent."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from trillium.component import Component
from trillium.message import Kind


class Codec(Component, kind="codec", package="trillium.codecs"):
    """Turns a float tensor into parts that are smaller, and back.

    A codec applies to every tensor of its `kinds`. The part named `""` takes the tensor's place, and a
    later codec of the stack may encode it again; further parts (scales, indices) are sent beside it.

    Attributes:
        kinds: which kinds of tensors it encodes; the others pass untouched.
    """

    kinds: tuple[Kind, ...] = ("parameters", "gradients", "logits", "activations")

    def encode(self, tensor: Tensor) -> dict[str, Tensor]:
        """Return the parts to send; the part `""` must be there."""
        raise NotImplementedError

    def decode(self, parts: Mapping[str, Tensor]) -> Tensor:
        """Return the tensor, float32 and of the shape that was encoded.

        Raises:
            ValueError: the parts, which come from a peer, do not fit together.
        """
        raise NotImplementedError
