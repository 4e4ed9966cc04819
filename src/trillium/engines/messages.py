"""The distributed engine without a stream: one Flower message an ask.

It needs no second port; each ask costs the start of a process on the node, which takes seconds.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

from flwr.app import RecordDict

from trillium.engines.held import Held
from trillium.engines.invitations import RETRY_SECONDS
from trillium.engines.opening import Arrival, Opening, read_round
from trillium.engines.patience import OVER, OWES, Patience
from trillium.engines.roster import Mail, bytes_of, opening_record, outcome, text_of, with_bytes
from trillium.federation.engine import Gathered, Saved
from trillium.federation.parts import CARRIED_BYTES, Lost

log = logging.getLogger(__name__)

T = TypeVar("T")


class MessageEngine:
    """Asks by Flower messages alone."""

    def __init__(self, mail: Mail, opening: Opening, patience: Patience) -> None:
        self._mail, self._opening, self._patience = mail, opening, patience
        self.counts: dict[str, Mapping[str, int]] = {}  # of the texts of nodes, as these say
        self.most_bytes = CARRIED_BYTES  # of a reply; the run says how many
        self._nodes: dict[str, int] = {}
        self._since: dict[int, str] = {}  # when those came online that have settled
        self._held = Held()
        self._not_before: dict[int, float] = {}  # when one that could not take part is asked again
        self._round_ends = math.inf
        self._empty: set[str] = set()  # held nothing of earlier rounds when they came

    def late(self) -> list[tuple[str, int]]:
        """Return who has answered too late since the last time, and how many bytes."""
        self._mail.owing()
        names = {node: name for name, node in self._nodes.items()}
        late = [
            (names.get(node, ""), _read(content, bytes_of)) for node, content in self._mail.late
        ]
        self._mail.late.clear()
        return [(name, len(reply)) for name, reply in late if name and isinstance(reply, bytes)]

    @property
    def clients(self) -> Sequence[str]:
        """Names of the nodes that have been here, sorted."""
        return sorted(self._nodes)

    def carry(self, requests: Mapping[str, bytes]) -> Iterator[tuple[str, bytes | Lost]]:
        """Send each ask as a Flower message; not to those who still owe the answer to another."""
        names = {self._nodes[name]: name for name in requests}
        owing = self._mail.owing()
        seconds = self._patience.deadline(self._round_ends)
        for node in (owing if seconds else {*names}) & names.keys():
            yield names.pop(node), Lost(OWES if node in owing else OVER, sent=False)
        contents = {
            node: with_bytes(opening_record(self._opening), requests[name])
            for node, name in names.items()
        }
        for node, content in self._mail.exchange("ask", contents, seconds, self._patience.grace):
            reply = _read(content, bytes_of)
            if isinstance(reply, bytes) and len(reply) > self.most_bytes:
                reply = Lost(
                    f"a reply of {len(reply)} bytes, at most {self.most_bytes} are accepted"
                )
            if isinstance(content, RecordDict) and isinstance(reply, bytes):
                self._note(names[node], content)
            yield names[node], reply

    def _note(self, name: str, content: RecordDict) -> None:
        """Note what a node says to have kept after an ask."""
        with suppress(ValueError):
            self._held.note(name, read_round(json.loads(text_of(content, "node", "kept"))))

    def gather(self, need: int) -> Gathered:
        """Wait for enough nodes, and ask those that are new who they are."""
        present = self._patience.until(need, self._look)
        self._round_ends = self._patience.ends()
        return self._held.gathered(present)

    def _look(self) -> set[str]:
        """Let those settle who are new, or whose SuperNode was started anew and has forgotten."""
        online = self._mail.nodes()
        paused = {n for n, t in self._not_before.items() if time.monotonic() < t}
        settled = {node for node in online if self._since.get(node) == online[node].since}
        anew = {n for n, node in online.items() if self._since.get(n, node.since) != node.since}
        owing = self._mail.owing(anew)
        fresh = [node for node in online if node not in paused | settled | owing]
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
            self._since[node] = online[node].since
            self._held.came(name, arrival.round)
            if arrival.round is None:
                self._empty.add(name)
        here = {node for node in online if self._since.get(node) == online[node].since} - owing
        return {name for name, node in self._nodes.items() if node in here}

    def save(self, number: int) -> Saved:
        """Note the round; the nodes keep what they hold after every ask."""
        self._opening = replace(self._opening, number=number)
        return Saved(self._held.rounds)

    def restore(self, number: int, held: Mapping[str, int]) -> None:
        """Note the round; the nodes go back to it with the first message after this."""
        self._opening = replace(self._opening, number=number)
        self._held = Held(dict(held), {*self._empty})
        self._since = {}

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
