"""Invitations: the Flower messages that open sessions, one to each node that has none."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from trillium.engines.opening import Opening
from trillium.engines.roster import Mail, Online, Unreachable, opening_record, outcome
from trillium.engines.stream import SessionServer
from trillium.errors import UserError
from trillium.federation.parts import Lost

log = logging.getLogger(__name__)

# Before a node that answered nothing since it was invited is invited again; doubled each time.
RETRY_SECONDS: Final = 10.0
LONGEST_RETRY_SECONDS: Final = 600.0


@dataclass(frozen=True)
class _Invited:
    name: str
    node: int
    since: str


class Invitations:
    """Invites nodes to sessions at `address`, and again when their session has ended.

    Attributes:
        closing: whether it is no surprise any more that sessions end.
    """

    def __init__(self, mail: Mail, sessions: SessionServer, address: str) -> None:
        self._mail, self._sessions, self._address = mail, sessions, address
        self._open: dict[str, _Invited] = {}  # by the message
        self._tries: dict[str, int] = {}  # since the last answer
        self._not_before: dict[str, float] = {}
        self.closing = False

    @property
    def unanswered(self) -> set[str]:
        """Names of the nodes whose invitation has no answer, as the session goes on."""
        return {invited.name for invited in self._open.values()}

    def answered(self, name: str) -> None:
        """Take note that a node has answered an ask."""
        self._tries.pop(name, None)

    def send(self, opening: Opening) -> None:
        """Invite all that are online and have no session."""
        self.collect()
        connected, nodes = {*self._sessions.clients}, self._mail.nodes()
        self._give_up_lost(nodes, connected)
        busy = connected | self.unanswered
        contents, invited = {}, {}
        for node, online in nodes.items():
            name = online.name
            if not name:
                raise UserError(
                    'transport="session"',
                    "a node has no name",
                    'Register each node with --name, or write transport="messages"',
                )
            if name in busy or time.monotonic() < self._not_before.get(name, 0.0):
                continue
            token = self._sessions.invite(name)
            contents[node] = opening_record(opening, address=self._address, token=token)
            invited[node] = _Invited(name, node, online.since)
            self._tries[name] = self._tries.get(name, 0) + 1
        if contents:
            sent = self._mail.send("session", contents, None)
            self._open |= {message: invited[node] for message, node in sent.items()}

    def _give_up_lost(self, nodes: Mapping[int, Online], connected: set[str]) -> None:
        """Forget what was sent to a SuperNode that was started anew: it will never be answered."""
        for message, invited in list(self._open.items()):
            online = nodes.get(invited.node)
            if online and online.since != invited.since and invited.name not in connected:
                del self._open[message]
                self._ended(invited.name, "its SuperNode was started anew")

    def collect(self) -> None:
        """Take note of the sessions that have ended."""
        for message, content in self._mail.answers(self._open):
            name = self._open.pop(message).name
            if isinstance(content, Unreachable):
                self._ended(name, content.reason)  # its stream may live all the same
                continue
            # Its ClientApp has ended: what is left of its stream is not.
            self._sessions.disconnect(name, "its process has ended")
            self._ended(name, content.reason if isinstance(content, Lost) else outcome(content))

    def _ended(self, name: str, reason: str) -> None:
        tries = self._tries.get(name, 0)  # none since its last answer: it is worth another one now
        pause = min(RETRY_SECONDS * 2 ** (tries - 1), LONGEST_RETRY_SECONDS) if tries else 0.0
        self._not_before[name] = time.monotonic() + pause
        level = logging.INFO if self.closing else logging.WARNING
        log.log(level, "%s: its session has ended: %s", name, reason)
