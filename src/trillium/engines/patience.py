"""How long the server waits for its nodes."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from trillium.federation.parts import Lost

log = logging.getLogger(__name__)

POLL_SECONDS: Final = 0.5
OWES: Final = "it still owes the answer to an earlier ask"
OVER: Final = "it was not asked, as the round had taken all its time (round-seconds)"


@dataclass(frozen=True)
class Grace:
    """How long the others are waited for once enough have answered an ask."""

    enough: int
    seconds: float


@dataclass(frozen=True)
class Patience:
    """How long the server waits.

    Attributes:
        wait_seconds: for nodes, before a round.
        deadline_seconds: for the answer to an ask.
        round_seconds: for the answers to all asks of a round.
        grace: for those who answer later than others; as long as for anybody by default.
    """

    wait_seconds: float
    deadline_seconds: float
    round_seconds: float = math.inf
    grace: Grace | None = None

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

    def ends(self) -> float:
        """Return when a round ends that begins now, by the clock of `deadline`."""
        return time.monotonic() + self.round_seconds

    def deadline(self, ends: float) -> float:
        """Return how many seconds an ask may take now, in a round that ends then."""
        return min(self.deadline_seconds, max(ends - time.monotonic(), 0.0))


class Wait:
    """The time that one ask has left.

    Attributes:
        why: how long it had, to be told of those that did not answer.
    """

    def __init__(self, seconds: float | None, grace: Grace | None = None) -> None:
        self._until = math.inf if seconds is None else time.monotonic() + seconds
        self._grace, self._answers = grace, 0
        self.why = "" if seconds is None else f"within {round(seconds, 1):g} s"

    @property
    def left(self) -> float | None:
        """Seconds; `None` if there is no end."""
        return None if self._until == math.inf else max(self._until - time.monotonic(), 0.0)

    def note(self, reply: object) -> None:
        """Take note of an answer; when enough have come, the others have their grace left."""
        if self._grace is None or isinstance(reply, Lost):
            return
        self._answers += 1
        if self._answers == self._grace.enough:
            end = time.monotonic() + self._grace.seconds
            if end < self._until:
                self._until = end
                self.why = (
                    f"within {self._grace.seconds:g} s of the {self._answers} that are enough"
                )
