"""Single-use tokens: one that a client is invited with, then one to come back with per welcome."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass, field
from typing import Literal

Use = Literal["invited", "returns"]


@dataclass
class Tokens:
    """Which tokens are good now; only hashes are kept. The caller guards it with a lock."""

    _good: dict[str, dict[bytes, Use]] = field(default_factory=dict)

    def invite(self, name: str) -> str:
        """Return a new token for a name; every earlier one of that name becomes void."""
        token = secrets.token_urlsafe(32)
        self._good[name] = {_digest(token): "invited"}
        return token

    def check(self, name: str, token: str) -> Use | None:
        """Return what a token of that name is good for; None if it is not good."""
        digest = _digest(token)
        found: Use | None = None
        for known, use in self._good.get(name, {}).items():
            if hmac.compare_digest(known, digest):
                found = use
        return found

    def offer(self, name: str, token: str) -> str:
        """Return a token to come back with; the good token of the hello stays good beside it.

        A link may be lost before the client has the new one, or before it could say so.
        """
        offered = secrets.token_urlsafe(32)
        use = self.check(name, token)
        assert use is not None, name
        self._good[name] = {_digest(token): use, _digest(offered): "returns"}
        return offered

    def settle(self, name: str, offered: str) -> None:
        """Leave the offered token as the only good one: the client has it."""
        self._good[name] = {_digest(offered): "returns"}

    def void(self, name: str) -> None:
        """Make every token of a name void."""
        self._good.pop(name, None)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
