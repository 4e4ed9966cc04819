"""Who came and went at a session server: logged and told in the order in which it happened."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Literal

log = logging.getLogger(__name__)

Change = Literal["joined", "lost", "refused"]
OnChange = Callable[[str, Change, str], None]


class Changes:
    """Changes that wait to be told; whoever adds one holds a lock, and whoever tells them does not."""

    def __init__(self, on_change: OnChange | None) -> None:
        self._on_change = on_change
        self._telling = threading.RLock()
        self._waiting: deque[tuple[str, Change, str]] = deque()

    def add(self, name: str, change: Change, reason: str) -> None:
        """Note a change."""
        self._waiting.append((name, change, reason))

    def tell(self) -> None:
        """Log what has happened and call back, in order and never twice at once."""
        with self._telling:
            while self._waiting:
                name, change, reason = self._waiting.popleft()
                level = logging.WARNING if change == "refused" else logging.INFO
                log.log(level, "%s: %s: %s", name, change, reason, extra={"client": name})
                if self._on_change is not None:
                    try:
                        self._on_change(name, change, reason)
                    except Exception:
                        log.exception("%s: on_change failed", name, extra={"client": name})
