"""What masks are made of: keys that two sides agree on, boxes that one of them opens, streams.

X25519, Ed25519, HKDF-SHA256, AES-256-GCM and AES-256-CTR, all of the package `cryptography`.
"""

from __future__ import annotations

import os
from typing import Any, Final

import numpy as np
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from trillium.wire.kinds import MessageError

KEY: Final = 32  # bytes of a key, a seed, a public key
SIGNATURE: Final = 64
NONCE: Final = 12
BOX: Final = NONCE + 16  # what a box weighs beside its content
_ZEROS: Final = bytes(2**18)  # of a stream at a time: it stays in the cache
_ROWS: Final = 2**15  # values at a time, whose bits are taken apart
Lanes = NDArray[Any]
"""Whole numbers modulo a power of two, in the narrowest dtype without a sign that holds them."""


def told(*parts: str | bytes) -> bytes:
    """Return texts one after the other, so that no others give the same."""
    data = [part.encode() if isinstance(part, str) else part for part in parts]
    return b"trillium" + b"".join(len(part).to_bytes(4, "big") + part for part in data)


def derived(secret: bytes, info: bytes) -> bytes:
    """Return a key for one use of a secret."""
    return HKDF(SHA256(), KEY, None, info).derive(secret)


def public_of(private: bytes) -> bytes:
    """Return the public key of X25519."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def agreed(private: bytes, public: bytes, info: bytes) -> bytes:
    """Return the key that the owners of two X25519 keys have in common, for one use.

    Raises:
        MessageError: the other's key is none.
    """
    try:
        own = X25519PrivateKey.from_private_bytes(private)
        return derived(own.exchange(X25519PublicKey.from_public_bytes(public)), info)
    except ValueError as error:
        raise MessageError("a public key of a peer is none") from error


def verifier_of(seed: bytes) -> bytes:
    """Return the public key of Ed25519."""
    return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()


def signed(seed: bytes, data: bytes) -> bytes:
    """Return the signature of some data."""
    return Ed25519PrivateKey.from_private_bytes(seed).sign(data)


def is_signed(verifier: bytes, signature: bytes, data: bytes) -> bool:
    """Whether the owner of a public key has signed some data."""
    try:
        Ed25519PublicKey.from_public_bytes(verifier).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True


def shut(key: bytes, content: bytes, about: bytes) -> bytes:
    """Return a box that nobody opens, changes, or passes for another one, without the key."""
    nonce = os.urandom(NONCE)
    return nonce + AESGCM(key).encrypt(nonce, content, about)


def opened(key: bytes, box: bytes, about: bytes) -> bytes | None:
    """Return what is in a box, or None if it is not as it was shut."""
    try:
        return AESGCM(key).decrypt(box[:NONCE], box[NONCE:], about)
    except InvalidTag:
        return None


def lanes(bits: int) -> np.dtype[Any]:
    """Return the dtype of whole numbers of so many bits."""
    return np.dtype(next(f"<u{size}" for size in (2, 4, 8) if bits <= 8 * size))


def mask(values: Lanes, key: bytes, *, off: bool = False) -> None:
    """Add the stream of a key to whole numbers, or take it off; a key is for one stream."""
    stream = Cipher(AES(key), CTR(bytes(16))).encryptor()
    count = len(_ZEROS) // values.itemsize
    for start in range(0, len(values), count):
        part = values[start : start + count]
        words = np.frombuffer(stream.update(_ZEROS[: part.nbytes]), values.dtype)
        (np.subtract if off else np.add)(part, words, out=part)


def packed(values: Lanes, bits: int) -> NDArray[np.uint8]:
    """Return the lowest bits of whole numbers, one after the other."""
    wide = values.dtype.newbyteorder(">")
    width, found = 8 * wide.itemsize, []
    for start in range(0, len(values), _ROWS):
        part = values[start : start + _ROWS].astype(wide).view(np.uint8)
        found.append(np.packbits(np.unpackbits(part).reshape(-1, width)[:, width - bits :]))
    return np.concatenate(found)


def unpacked(data: NDArray[np.uint8], count: int, bits: int) -> Lanes:
    """Return so many whole numbers that `packed` was given."""
    wide = lanes(bits).newbyteorder(">")
    width, found = 8 * wide.itemsize, []
    for start in range(0, count, _ROWS):
        size = min(_ROWS, count - start)
        part = np.unpackbits(data[start * bits // 8 :][: -(-size * bits // 8)], count=size * bits)
        whole = np.pad(part.reshape(size, bits), ((0, 0), (width - bits, 0)))
        found.append(np.packbits(whole).view(wide).astype(lanes(bits)))
    return np.concatenate(found)


def nbytes(count: int, bits: int) -> int:
    """Return how many bytes whole numbers take that are packed."""
    return -(-count * bits // 8)
