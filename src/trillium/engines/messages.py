"""The distributed engine without a stream: one Flower message an ask.

It needs no second port; each ask costs the start of a process on the node, which takes seconds.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

from flwr.app import RecordDict

from trillium.engines.distributed import Patience
from trillium.engines.node import Opening
from trillium.engines.roster import Mail, bytes_of, opening_record, outcome, text_of, with_bytes
from trillium.fleet import Lost

log = logging.getLogger(__name__)

POLL_SECONDS: Final = 0.5


class MessageEngine:
    """Asks by Flower messages alone.

    Args:
        mail: Flower messages to the nodes.
        opening: what the run is, and its last complete round.
        patience: how long to wait.
    """

    def __init__(self, mail: Mail, opening: Opening, patience: Patience) -> None:
        self._mail, self._opening, self._patience = mail, opening, patience
        self._nodes: dict[str, int] = {}
        self._empty: set[str] = set()  # held nothing of earlier rounds when they came
        self._new: set[str] = set()  # of these, those that the framework has not been told of

    @property
    def clients(self) -> Sequence[str]:
        """Names of the nodes that have been here, sorted."""
        return sorted(self._nodes)

    def carry(self, requests: Mapping[str, bytes]) -> Iterator[tuple[str, bytes | Lost]]:
        """Send each ask as a Flower message."""
        names = {self._nodes[name]: name for name in requests}
        contents = {
            self._nodes[name]: with_bytes(opening_record(self._opening), data)
            for name, data in requests.items()
        }
        seconds = self._patience.deadline_seconds
        for node, content in self._mail.exchange("ask", contents, seconds):
            yield names[node], content if isinstance(content, Lost) else _reply(content)

    def gather(self, need: int) -> set[str]:
        """Wait for enough nodes, and ask those that are new who they are."""
        deadline = time.monotonic() + self._patience.wait_seconds
        told = False
        while True:
            known = set(self._nodes.values())
            fresh = [node for node in self._mail.nodes() if node not in known]
            contents = {node: opening_record(self._opening) for node in fresh}
            seconds = self._patience.deadline_seconds
            for node, content in self._mail.exchange("settle", contents, seconds):
                reply = content if isinstance(content, Lost) else _settled(content)
                if isinstance(reply, Lost):
                    log.warning("node %d: %s", node, reply.reason)
                    continue
                name, had = reply
                self._nodes[name] = node
                if not had:
                    self._empty.add(name)
                    self._new.add(name)
            if len(self._nodes) >= need or time.monotonic() > deadline:
                break
            if not told:
                log.info("waiting for nodes: %d of %d are here", len(self._nodes), need)
                told = True
            time.sleep(POLL_SECONDS)
        found, self._new = self._new, set()
        return found

    def save(self, number: int) -> None:
        """Note the round; the nodes keep what they hold after every ask."""
        self._opening = replace(self._opening, number=number)

    def restore(self, number: int) -> None:
        """Note the round; the nodes go back to it with the first ask of a Flower run."""
        self._opening = replace(self._opening, number=number)
        self._new = {*self._empty}

    def close(self, *, finished: bool) -> None:
        """Let the nodes remove what they keep, after a finished run."""
        if finished:
            contents = {node: opening_record(self._opening) for node in self._nodes.values()}
            for _ in self._mail.exchange("forget", contents, self._patience.deadline_seconds):
                pass


def _reply(content: RecordDict) -> bytes | Lost:
    try:
        return bytes_of(content)
    except ValueError:
        return Lost(outcome(content))


def _settled(content: RecordDict) -> tuple[str, bool] | Lost:
    try:
        return text_of(content, "node", "name"), text_of(content, "node", "kept") == "yes"
    except ValueError:
        return Lost(outcome(content))
