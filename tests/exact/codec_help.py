"""What the tests of codecs share: a wire of named codecs, tensors, and how far off one is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trillium.component import resolve
from trillium.wire.codecs import Codec
from trillium.wire.message import Message
from trillium.wire.wire import Wire

NAME = "parameters/x"


def wire(*codecs: Any) -> Wire:
    return Wire.model_validate({"up": list(codecs)})


def codec(name: str, **options: Any) -> Codec:
    return resolve(Codec, {"name": name, **options})


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def send(tensor: Tensor, over: Wire, number: int = 0) -> Tensor:
    """Return a tensor as the other side reads it in a round."""
    message = Message("train", {NAME: tensor}, {"round": number})
    return over.unpack(over.pack(message, "up").data, "up").message.tensors[NAME]


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def bytes_of(choice: Any, tensor: Tensor) -> int:
    """Return what a tensor weighs behind one codec, without the header."""
    return wire(choice).pack(Message("train", {NAME: tensor}), "up").kinds["parameters"]
