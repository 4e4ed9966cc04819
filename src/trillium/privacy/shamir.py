"""A secret in parts, of which some bring it back and fewer say nothing: How to Share a Secret.

Shamir (1979, Communications of the ACM 22(11)), byte by byte over GF(256), the field of AES: exact, and
for 255 parts at most.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
MOST: Final = 255  # parts: all that are not zero


def _tables() -> tuple[Bytes, Bytes]:
    """Return products `(256, 256)` and inverses `(256,)`; the inverse of zero stands for none."""
    powers, value = [], 1
    for _ in range(MOST):  # of 3, which gives all but zero
        powers.append(value)
        value ^= (value << 1) ^ (0x11B if value & 0x80 else 0)
    logs = {power: place for place, power in enumerate(powers)}
    products, inverses = np.zeros((256, 256), np.uint8), np.zeros(256, np.uint8)
    for left, log in logs.items():
        for right, other in logs.items():
            products[left, right] = powers[(log + other) % MOST]
        inverses[left] = powers[-log % MOST]
    return products, inverses


PRODUCTS, INVERSES = _tables()


def split(secret: bytes, threshold: int, parts: int) -> list[bytes]:
    """Return parts of a secret, any `threshold` of which bring it back."""
    assert 1 <= threshold <= parts <= MOST
    drawn = np.frombuffer(os.urandom((threshold - 1) * len(secret)), np.uint8)
    places = np.arange(1, parts + 1, dtype=np.uint8)[:, None]
    values = np.zeros((parts, len(secret)), np.uint8)
    for row in (*drawn.reshape(threshold - 1, len(secret)), np.frombuffer(secret, np.uint8)):
        values = PRODUCTS[values, places] ^ row
    return [bytes(value) for value in values]


def join(parts: Mapping[int, bytes]) -> bytes:
    """Return the secret of so many parts, by their place among all, as it was split for."""
    places = np.array([place + 1 for place in parts], np.uint8)
    values = np.array([np.frombuffer(part, np.uint8) for part in parts.values()])
    secret = np.zeros(values.shape[1], np.uint8)
    for row, place in enumerate(places):
        factor = np.uint8(1)
        for other in np.delete(places, row):
            factor = PRODUCTS[factor, PRODUCTS[other, INVERSES[other ^ place]]]
        secret ^= PRODUCTS[factor, values[row]]
    return bytes(secret)
