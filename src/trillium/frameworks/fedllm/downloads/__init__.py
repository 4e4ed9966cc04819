"""Downloads: how the server's state reaches a client, as a pair of halves."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from trillium.component import Component
from trillium.wire.kinds import Kind, MessageError, Nature, Tensors, has_values
from trillium.wire.message import Message, named
from trillium.wire.wire import Wire


@dataclass(frozen=True)
class Parcel:
    """What one client is to hold, and what is known of it.

    Attributes:
        start: what all sides know without a message, of the same names and shapes.
        is_new: whether the client holds nothing of earlier rounds.
    """

    client: str
    target: Tensors
    start: Tensors
    number: int
    is_new: bool
    wire: Wire

    def message(self, tensors: Tensors, meta: dict[str, Any]) -> Message:
        """Return the message that brings these."""
        return Message("train", tensors, {**meta, "round": self.number})


@dataclass(frozen=True)
class Sent:
    """What goes to one client, and what it holds once it has read it, bit for bit."""

    message: Message
    held: Tensors


class Download(Component, kind="download", package="trillium.frameworks.fedllm.downloads"):
    """Brings a client in step with the server.

    Nobody is sent what all sides know from the seed: a message names the tensors that it brings, and
    carries a digest of the start values, so that a client which drew others refuses to go on.
    """

    sends: ClassVar[Nature] = "values"
    """What crosses as `parameters`, where codecs are lossy."""

    def send(self, store: dict[str, Any], parcel: Parcel) -> Sent:
        """The server's half: return what to send; `store` is what this object keeps there."""
        raise NotImplementedError

    def state_of(self, store: dict[str, Any], client: str, is_new: bool) -> Hashable:
        """Return something that is equal for two clients only if they are to be sent the same."""
        return None

    def settle(self, store: dict[str, Any], parcel: Parcel, sent: Sent, answered: bool) -> None:
        """Note that the client holds what was sent; or, without an answer, that nobody knows."""

    def receive(
        self, store: dict[str, Any], message: Message, start: Tensors, wire: Wire
    ) -> Tensors:
        """The client's half: return what it now holds; `MessageError` if that does not fit."""
        raise NotImplementedError


def since_start(parcel: Parcel, kind: Kind, meta: dict[str, Any] | None = None) -> Sent:
    """Return the values that differ from those at the start, as tensors of a kind."""
    moved = changed(parcel.target, parcel.start)
    wanted = {name: parcel.target[name] for name in moved}
    sent = {"sent": mark(list(parcel.target), moved), "start": digest(parcel.start), **(meta or {})}
    message = parcel.message(named(kind, wanted), sent)
    if not moved or parcel.wire.is_lossless(kind, "down"):
        return Sent(message, parcel.target)
    previewed = parcel.wire.preview(message, "down")
    return Sent(previewed.message, {**parcel.target, **previewed.seen.expect(kind, wanted)})


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return 16 hexadecimal digits that depend on names, shapes and every bit of the values."""
    found = hashlib.blake2b(digest_size=8)
    for name in sorted(tensors):
        tensor = tensors[name]
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        if has_values(tensor):
            tensor = tensor.detach().cpu().contiguous()
            found.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def changed(target: Tensors, known: Tensors) -> list[str]:
    """Return the names whose values differ in a bit from what is known."""
    return [name for name, tensor in target.items() if not torch.equal(tensor, known[name])]


def mark(names: Sequence[str], chosen: Collection[str]) -> str:
    """Return which of the names are chosen, as a hexadecimal number: one bit each."""
    wanted = {*chosen}
    return f"{sum(1 << place for place, name in enumerate(names) if name in wanted):x}"


def marked(names: Sequence[str], text: object) -> list[str]:
    """Return the names that `mark` has chosen; `MessageError` if it is not such a number."""
    if not isinstance(text, str) or not re.fullmatch(rf"[0-9a-f]{{1,{len(names) // 4 + 1}}}", text):
        raise MessageError("the tensors that come are not marked as agreed")
    bits = int(text, 16)
    if bits >> len(names):
        raise MessageError("more tensors are marked than there are")
    return [name for place, name in enumerate(names) if bits >> place & 1]


def check_start(message: Message, start: Tensors) -> None:
    """Refuse a message of a server that has drawn others: it leaves out what both sides know."""
    if message.meta.get("start") != digest(start):
        raise MessageError(
            "the start values here are not those of the server; are torch, transformers and peft of "
            "the same versions, and is the model the same?"
        )
