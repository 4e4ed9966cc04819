"""Who the nodes of a Flower run are, and Flower messages to them; all of Flower's classes are here.

Flower's own message classes hold bfloat16 and float8 badly, and its arrays unpickle by another path;
bytes cross as they are, as an array of unsigned bytes that nobody decodes.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Final

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from trillium.engines.opening import Opening
from trillium.engines.patience import Grace, Wait
from trillium.errors import one_line
from trillium.federation.parts import Lost

POLL_SECONDS: Final = 0.1
_BYTES: Final = "trillium.bytes"
# Of a message that opens a session: it lasts as long as the run.
_TTL_SECONDS: Final = 7 * 24 * 3600.0
# Of Flower's error codes: the SuperNode was offline when it was asked for.
_NODE_UNAVAILABLE: Final = 5


@dataclass(frozen=True)
class Online:
    """A node that is online: its name, empty in a simulation, and since when.

    A SuperNode that was started anew has come online anew, and knows nothing of what it was sent
    before.
    """

    name: str
    since: str


class Unreachable(Lost):
    """No answer for now, as the SuperNode is offline; what it started may run on."""


class Mail:
    """Flower messages to the nodes of one run, or to the one of a name alone.

    Attributes:
        open: the nodes that have not answered an exchange in time, by the message.
        late: what has come of these since, by the node.
    """

    def __init__(self, grid: Grid, only: str | None = None) -> None:
        self._grid, self._only = grid, only
        self.open: dict[str, int] = {}
        self.late: list[tuple[int, RecordDict]] = []

    def nodes(self) -> dict[int, Online]:
        """Return the nodes that are online, by id."""
        found = {
            node.node_id: Online(
                str(getattr(node, "name", "")), str(getattr(node, "last_activated_at", ""))
            )
            for node in self._grid.get_nodes()
        }
        return {i: node for i, node in found.items() if self._only in (None, node.name)}

    def send(
        self, action: str, contents: Mapping[int, RecordDict], ttl: float | None
    ) -> dict[str, int]:
        """Send a message, void after `ttl` seconds or a week; return the nodes by its id."""
        seconds = _TTL_SECONDS if ttl is None else ttl
        messages = [
            Message(content, node, f"query.{action}", ttl=seconds)
            for node, content in contents.items()
        ]
        ids = list(self._grid.push_messages(messages))
        return {sent: node for sent, node in zip(ids, contents, strict=True) if sent}

    def answers(self, waiting: Iterable[str]) -> Iterator[tuple[str, RecordDict | Lost]]:
        """Yield those answers that have come, by the id of the message they answer."""
        ids = list(waiting)
        for reply in self._grid.pull_messages(ids) if ids else ():
            sent = reply.metadata.reply_to_message_id
            if reply.has_error():
                code, reason = reply.error.code, reply.error.reason or "no reason"
                kind = Unreachable if code == _NODE_UNAVAILABLE else Lost
                yield sent, kind(one_line(f"Flower error {code}: {reason}"))
            else:
                yield sent, reply.content

    def exchange(
        self,
        action: str,
        contents: Mapping[int, RecordDict],
        seconds: float,
        grace: Grace | None = None,
    ) -> Iterator[tuple[int, RecordDict | Lost]]:
        """Send a message to each node and yield the answers as they arrive, or why there is none.

        `open` has the nodes that have not answered in time, by the message.
        """
        waiting = self.send(action, contents, None)
        for node in contents.keys() - set(waiting.values()):
            yield node, Lost("Flower did not take the message", sent=False)
        wait, found = Wait(seconds, grace), dict[str, RecordDict | Lost]()
        try:
            while waiting and wait.left:
                found = dict(self.answers(waiting))
                if not found:
                    time.sleep(POLL_SECONDS)
                while found:
                    sent = next(iter(found))
                    content = found.pop(sent)
                    wait.note(content)
                    yield waiting.pop(sent), content
        finally:  # the caller may want no more
            come = {sent: waiting.pop(sent) for sent in found}
            self.late += [(come[n], own) for n, own in found.items() if isinstance(own, RecordDict)]
            self.open |= waiting
        for node in waiting.values():
            yield node, Lost(f"no reply {wait.why}")

    def owing(self, anew: Set[int] = frozenset()) -> set[int]:
        """Return the nodes that still owe an answer, which would not hear another message.

        Those that were started anew owe nothing: they know of no earlier message.
        """
        self.open = {sent: node for sent, node in self.open.items() if node not in anew}
        for sent, content in list(self.answers(self.open)):
            node = self.open.pop(sent)
            if not isinstance(content, Lost):
                self.late.append((node, content))
        return {*self.open.values()}


def opening_record(opening: Opening, **more: str) -> RecordDict:
    """Return what tells a node what the run is."""
    return RecordDict({"opening": ConfigRecord({"opening": opening.encode(), **more})})


def with_bytes(content: RecordDict, data: bytes) -> RecordDict:
    """Add opaque bytes to a message."""
    content["data"] = ArrayRecord({"data": Array("uint8", (len(data),), _BYTES, data)})
    return content


def bytes_of(content: RecordDict) -> bytes:
    """Return the opaque bytes of a message; `ValueError` if there are none."""
    record = content.get("data")
    array = record.get("data") if isinstance(record, ArrayRecord) else None
    if array is None or array.stype != _BYTES:
        raise ValueError("the message holds no bytes of Trillium")
    return bytes(array.data)


def text_of(content: RecordDict, record: str, key: str) -> str:
    """Return a text of a message; `ValueError` if there is none."""
    found = content.get(record)
    value = found.get(key) if isinstance(found, ConfigRecord) else None
    if not isinstance(value, str):
        raise ValueError(f"the message holds no {key}")
    return value


def outcome(content: RecordDict) -> str:
    """Return what a node says in place of an answer, or at the end of a session."""
    try:
        return one_line(text_of(content, "summary", "closed"))
    except ValueError as error:
        return str(error)
