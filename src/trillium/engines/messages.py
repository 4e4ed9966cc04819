"""The distributed engine without a stream: one Flower message an ask.

It needs no second port; each ask costs the start of a process on the node, which takes seconds.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from flwr.app import RecordDict

from trillium.engines.distributed import RETRY_SECONDS, Patience
from trillium.engines.node import Arrival, Opening
from trillium.engines.roster import Mail, bytes_of, opening_record, outcome, text_of, with_bytes
from trillium.federation.fleet import Gathered, Lost

log = logging.getLogger(__name__)

T = TypeVar("T")


class MessageEngine:
    """Asks by Flower messages alone."""

    def __init__(self, mail: Mail, opening: Opening, patience: Patience) -> None:
        self._mail, self._opening, self._patience = mail, opening, patience
        self.counts: dict[str, Mapping[str, int]] = {}  # of the texts of nodes, as these say
        self._nodes: dict[str, int] = {}
        self._not_before: dict[int, float] = {}  # when one that could not take part is asked again
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
            yield names[node], _read(content, bytes_of)

    def gather(self, need: int) -> Gathered:
        """Wait for enough nodes, and ask those that are new who they are."""
        present = self._patience.until(need, self._look)
        found, self._new = self._new, set()
        return Gathered(present, found)

    def _look(self) -> set[str]:
        online = self._mail.nodes()
        paused = {n for n, t in self._not_before.items() if time.monotonic() < t}
        fresh = [node for node in online if node not in paused | {*self._nodes.values()}]
        contents = {node: opening_record(self._opening) for node in fresh}
        seconds = self._patience.deadline_seconds
        for node, content in self._mail.exchange("settle", contents, seconds):
            reply = _read(content, _settled)
            if isinstance(reply, Lost):
                log.warning("node %d: %s", node, reply.reason)
                self._not_before[node] = time.monotonic() + RETRY_SECONDS
                continue
            name, arrival = reply
            self._nodes[name], self.counts[name] = node, arrival.counts
            if not arrival.had:
                self._empty.add(name)
                self._new.add(name)
        return {name for name, node in self._nodes.items() if node in online}

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


def _settled(content: RecordDict) -> tuple[str, Arrival]:
    arrival = Arrival.decode(text_of(content, "node", "arrival"))
    return text_of(content, "node", "name"), arrival


def _read(content: RecordDict | Lost, read: Callable[[RecordDict], T]) -> T | Lost:
    if isinstance(content, Lost):
        return content
    try:
        return read(content)
    except ValueError:
        return Lost(outcome(content))
