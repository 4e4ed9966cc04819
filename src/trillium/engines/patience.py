"""How long the server waits for its nodes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

log = logging.getLogger(__name__)

POLL_SECONDS: Final = 0.5


@dataclass(frozen=True)
class Patience:
    """How long the server waits."""

    wait_seconds: float
    deadline_seconds: float

    def until(self, need: int, look: Callable[[], set[str]]) -> set[str]:
        """Look who is here until there are enough of them, or the time is over; return who is."""
        deadline = time.monotonic() + self.wait_seconds
        told = False
        while len(found := look()) < need and time.monotonic() <= deadline:
            if not told:
                log.info("waiting for nodes: %d of %d are here", len(found), need)
                told = True
            time.sleep(POLL_SECONDS)
        return found
