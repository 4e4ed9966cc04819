"""The messages of a masked sum, as both halves write and read them.

mask_keys    once   up: keys that last for the run, and the proof of whose they are
mask_shares  down: who the peers are, keys of those that are new; up: a key for this sum, signed, and
             a box for each peer, with a share of two secrets
what is asked       down: keys of all that are in the sum, beside what is asked; up: the masked sum
mask_reveal  down: which peers have answered, and their boxes; up: one share for each of them
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from trillium.privacy.streams import BOX, KEY, SIGNATURE, told
from trillium.wire.kinds import MessageError
from trillium.wire.message import Message

KEYS, SHARES, REVEAL = "mask_keys", "mask_shares", "mask_reveal"
SUM: Final = "sums/flat"
ID: Final = "control/sum"
ID_BYTES: Final = 16
PUBLIC: Final = KEY + SIGNATURE  # of one sum: the key, and the signature of its owner
BOXED: Final = BOX + 2 * KEY


def as_tensor(data: bytes, *shape: int) -> Tensor:
    """Return bytes as a message holds them."""
    return torch.from_numpy(np.frombuffer(data, np.uint8).copy()).reshape(shape or (len(data),))


def as_bytes(message: Message, name: str, *shape: int | None) -> bytes:
    """Return bytes of a message of the other side; `MessageError` if they are not of that shape."""
    return bytes(message.tensor(name, torch.uint8, shape).numpy())


def rows_of(data: bytes, width: int) -> list[bytes]:
    """Return bytes in rows of one width."""
    return [data[start : start + width] for start in range(0, len(data), width)]


def names_in(message: Message, name: str) -> list[str]:
    """Return a list of different names; `MessageError` if it is none."""
    found = message.meta.get(name)
    is_list = isinstance(found, list) and all(isinstance(entry, str) for entry in found)
    if not isinstance(found, list) or not is_list or len(set(found)) != len(found):
        raise MessageError(f"{message.verb}: {name} are no names")
    return found


def whole_in(message: Message, name: str) -> int:
    """Return a whole number that is not negative; `MessageError` if it is none."""
    found = message.meta.get(name)
    if type(found) is not int or found < 0:
        raise MessageError(f"{message.verb}: {name} is no count")
    return found


@dataclass(frozen=True)
class Context:
    """What the keys of one sum are bound to.

    Attributes:
        number: drawn for this sum alone.
        round: of the run.
        asked: digest of the bytes that every client of the sum was asked with, the state among them.
    """

    number: bytes
    round: int
    asked: bytes = b""

    def public(self, name: str, key: bytes) -> bytes:
        """Return what a client signs of its key."""
        return told("public", self.number, str(self.round), name, key)

    def box(self, sender: str, receiver: str) -> bytes:
        """Return what the key of a box is for."""
        return told("box", self.number, str(self.round), sender, receiver)

    def own(self, name: str) -> bytes:
        """Return what a seed is for."""
        return told("own", self.number, name)

    def pair(self, name: str, other: str) -> bytes:
        """Return what two clients have a stream for."""
        return told("pair", self.number, str(self.round), self.asked, *sorted((name, other)))
