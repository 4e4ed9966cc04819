"""The distributed engines: nodes on machines of their own, reached through Flower.

`SessionEngine`: one Flower message opens a session, and the asks of the run cross its stream.
`MessageEngine`: one Flower message an ask; no second port, seconds slower each time.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from flwr.app import RecordDict

from trillium.engines.node import Opening
from trillium.engines.roster import Mail, bytes_of, opening_record, text_of, with_bytes
from trillium.engines.secure import ServerTLS
from trillium.engines.stream import SessionServer
from trillium.errors import UserError
from trillium.fleet import Lost

log = logging.getLogger(__name__)

POLL_SECONDS: Final = 0.5
RETRY_SECONDS: Final = 10.0  # before a node that could not begin is asked again
GOODBYE_SECONDS: Final = 10.0


@dataclass(frozen=True)
class Patience:
    """How long the server waits.

    Attributes:
        wait_seconds: for enough nodes before a round.
        deadline_seconds: for the replies to one ask.
    """

    wait_seconds: float
    deadline_seconds: float


class SessionEngine:
    """Keeps a session open with every node that can be had.

    Args:
        mail: Flower messages to the nodes.
        opening: what the run is, and its last complete round.
        patience: how long to wait.
        bind: `host:port` to listen on for sessions.
        address: `host:port` of the sessions as the nodes reach them.
        tls: the server's certificate and whom it trusts.
    """

    def __init__(
        self,
        mail: Mail,
        opening: Opening,
        patience: Patience,
        *,
        bind: str,
        address: str,
        tls: ServerTLS,
    ) -> None:
        self._mail, self._opening, self._patience = mail, opening, patience
        self._address = address
        self._known: set[str] = set()
        self._joined: set[str] = set()
        self._lock = threading.Lock()
        self._open: dict[str, tuple[str, int]] = {}  # name and node, by the message that opened it
        self._not_before: dict[str, float] = {}
        self._sessions = SessionServer(bind, tls, on_change=self._on_change)

    def _on_change(self, name: str, change: str, reason: str) -> None:
        if change == "joined":
            with self._lock:
                self._joined.add(name)

    @property
    def clients(self) -> Sequence[str]:
        """Names of the nodes that have been here, sorted."""
        return sorted(self._known)

    def carry(self, requests: Mapping[str, bytes]) -> Iterator[tuple[str, bytes | Lost]]:
        """Ask over the streams."""
        return self._sessions.carry(requests, deadline_seconds=self._patience.deadline_seconds)

    def gather(self, need: int) -> set[str]:
        """Invite who is online, wait for enough of them, and let newcomers find their state."""
        deadline = time.monotonic() + self._patience.wait_seconds
        told = False
        while True:
            self._invite()
            connected = self._sessions.clients
            if len(connected) >= need or time.monotonic() > deadline:
                break
            if not told:
                log.info("waiting for nodes: %d of %d are here", len(connected), need)
                told = True
            time.sleep(POLL_SECONDS)
        with self._lock:
            joined, self._joined = self._joined & {*connected}, self._joined - {*connected}
        kept = self._control("settle", joined)
        self._known |= kept.keys()
        if joined:
            log.info("joined: %s", ", ".join(sorted(joined)))
        return {name for name, had in kept.items() if had is not True}

    def save(self, number: int) -> None:
        """Let the nodes keep what they hold; a node that comes later is told this round."""
        self._control("save", set(self._sessions.clients), number)
        self._opening = replace(self._opening, number=number)

    def restore(self, number: int) -> None:
        """Take the nodes back to what they kept."""
        self._control("restore", set(self._sessions.clients), number)

    def close(self, *, finished: bool) -> None:
        """End all sessions; after a finished run the nodes need their state no more."""
        if finished:
            self._control("forget", set(self._sessions.clients))
        self._sessions.close("the run has finished" if finished else "the run has ended early")
        deadline = time.monotonic() + GOODBYE_SECONDS
        while self._open and time.monotonic() < deadline:
            self._collect()
            time.sleep(POLL_SECONDS)

    def _control(self, verb: str, names: set[str], number: int | None = None) -> dict[str, Any]:
        """Ask nodes what the framework knows nothing of, and return the answers that came."""
        data = json.dumps([verb, self._opening.number if number is None else number]).encode()
        asks = dict.fromkeys(sorted(names), data)
        seconds = self._patience.deadline_seconds
        answers: dict[str, Any] = {}
        for name, reply in self._sessions.carry(asks, channel="control", deadline_seconds=seconds):
            if isinstance(reply, Lost):
                log.warning("%s: %s: %s", name, verb, reply.reason)
            else:
                answers[name] = reply == b"true"
        return answers

    def _invite(self) -> None:
        """Open a session with each node that is online and has none."""
        self._collect()
        busy = {name for name, _ in self._open.values()}
        contents, names = {}, {}
        for node, name in self._mail.nodes().items():
            if not name:
                raise UserError(
                    'transport="session"',
                    "these nodes have no names, as in Flower's simulation",
                    'Write transport="messages", or register each node with --name',
                )
            if name in busy or time.monotonic() < self._not_before.get(name, 0.0):
                continue
            # Its ClientApp has ended: what is left of an earlier stream is not.
            self._sessions.disconnect(name, "its process has ended")
            token = self._sessions.invite(name)
            contents[node] = opening_record(self._opening, address=self._address, token=token)
            names[node] = name
        if contents:
            sent = self._mail.send("session", contents, None)
            self._open |= {message: (names[node], node) for message, node in sent.items()}

    def _collect(self) -> None:
        """Take the answers of nodes whose session has ended."""
        for message, content in self._mail.answers(self._open):
            name, _ = self._open.pop(message)
            reason = content.reason if isinstance(content, Lost) else _outcome(content)
            log.info("%s: its session has ended: %s", name, reason)
            self._not_before[name] = time.monotonic() + RETRY_SECONDS


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
        told, kept = False, {}
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
                kept[name] = had
            if len(self._nodes) >= need or time.monotonic() > deadline:
                break
            if not told:
                log.info("waiting for nodes: %d of %d are here", len(self._nodes), need)
                told = True
            time.sleep(POLL_SECONDS)
        return {name for name, had in kept.items() if not had}

    def save(self, number: int) -> None:
        """Note the round; the nodes keep what they hold after every ask."""
        self._opening = replace(self._opening, number=number)

    def restore(self, number: int) -> None:
        """Note the round; the nodes go back to it with the first ask of a Flower run."""
        self._opening = replace(self._opening, number=number)

    def close(self, *, finished: bool) -> None:
        """Let the nodes remove what they keep, after a finished run."""
        if finished:
            contents = {node: opening_record(self._opening) for node in self._nodes.values()}
            for _ in self._mail.exchange("forget", contents, self._patience.deadline_seconds):
                pass


def _outcome(content: RecordDict) -> str:
    try:
        return text_of(content, "summary", "closed")
    except ValueError as error:
        return str(error)


def _reply(content: RecordDict) -> bytes | Lost:
    try:
        return bytes_of(content)
    except ValueError:
        return Lost(_outcome(content))


def _settled(content: RecordDict) -> tuple[str, bool] | Lost:
    try:
        return text_of(content, "node", "name"), text_of(content, "node", "kept") == "yes"
    except ValueError:
        return Lost(_outcome(content))
