"""Whose a public key is: who forges one stands between two clients that think they share a secret."""

from __future__ import annotations

from typing import Protocol


class Vouching(Protocol):
    """What says whose a key is."""

    def proof(self, name: str, keys: bytes) -> bytes:
        """Return what shows others that keys are this client's own."""

    def check(self, name: str, keys: bytes, proof: bytes) -> None:
        """Raise `MessageError` unless keys are those of the client of a name."""


class Unproved:
    """In one process nobody forges keys."""

    def proof(self, name: str, keys: bytes) -> bytes:
        """Return nothing."""
        return b""

    def check(self, name: str, keys: bytes, proof: bytes) -> None:
        """Take the keys as they came."""
