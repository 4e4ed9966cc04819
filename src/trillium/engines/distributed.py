"""The distributed engine: nodes on machines of their own, a session open with each of them.

One Flower message opens a session, and the asks of the run cross its stream. A node may go and come
back at any time: its link lost and restored, its process or its SuperNode started anew.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from trillium.engines.held import Held
from trillium.engines.opening import Arrival, Opening, read_round
from trillium.engines.patience import POLL_SECONDS, Patience
from trillium.engines.roster import Mail, Online, Unreachable, opening_record, outcome
from trillium.engines.secure import ServerTLS
from trillium.engines.stream import SessionServer
from trillium.errors import UserError
from trillium.federation.fleet import Gathered, Lost, RoundFailed, Saved

log = logging.getLogger(__name__)

# Before a node that answered nothing since it was invited is invited again; doubled each time.
RETRY_SECONDS: Final = 10.0
LONGEST_RETRY_SECONDS: Final = 600.0
CONTROL_BYTES: Final = 64 * 1024  # of an answer that is none to the framework
GOODBYE_SECONDS: Final = 10.0


@dataclass(frozen=True)
class _Invited:
    name: str
    node: int
    since: str


class SessionEngine:
    """Keeps a session open with every node that can be had.

    It listens for sessions on `bind`; the nodes reach them at `address`, `host:port` both.
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
        self.counts: dict[str, Mapping[str, int]] = {}  # of the texts of nodes, as these say
        self._known: set[str] = set()
        self._behind: set[str] = set()  # did not answer their last ask
        self._took: set[str] = set()  # answered in this round
        self._held = Held()
        self._undone: set[str] = set()  # have not gone back with the others
        self._need = 0
        self.most_bytes = CONTROL_BYTES  # of a reply; the run says more as soon as it is set up
        self._lock = threading.Lock()
        self._arrived: set[str] = set()  # have joined, and not been told yet where the run is
        self._open: dict[str, _Invited] = {}  # by the message
        self._tries: dict[str, int] = {}  # invitations since the last answer
        self._not_before: dict[str, float] = {}
        self._closing = False
        self._sessions = SessionServer(bind, tls, on_change=self._on_change)

    def _on_change(self, name: str, change: str, reason: str) -> None:
        if change == "joined":
            with self._lock:
                self._arrived.add(name)

    @property
    def clients(self) -> Sequence[str]:
        """Names of the nodes that have been here, sorted."""
        return sorted(self._known)

    def carry(self, requests: Mapping[str, bytes]) -> Iterator[tuple[str, bytes | Lost]]:
        """Ask over the streams; who came back since the round began does not know where it is."""
        yield from self.post(requests)

    def post(self, requests: Mapping[str, bytes]) -> Iterator[tuple[str, bytes | Lost]]:
        """Send the requests now, and return what yields the replies as `carry` does."""
        self._sessions.tell()
        with self._lock:
            fresh = self._arrived & requests.keys()
        asks = {name: data for name, data in requests.items() if name not in fresh}
        seconds = self._patience.deadline_seconds
        replies = self._sessions.post(asks, deadline_seconds=seconds, most_bytes=self.most_bytes)
        return self._noted(fresh, replies)

    def _noted(
        self, fresh: set[str], replies: Iterator[tuple[str, bytes | Lost]]
    ) -> Iterator[tuple[str, bytes | Lost]]:
        for name in sorted(fresh):
            reason = "it came back during the round, and takes part from the next one on"
            yield name, Lost(reason, sent=False)
        for name, reply in replies:
            if isinstance(reply, Lost):
                self._behind.add(name)
            else:
                self._took.add(name)
                self._behind.discard(name)
                self._tries.pop(name, None)
            yield name, reply

    def gather(self, need: int) -> Gathered:
        """Invite who is online, wait for enough of them, and let newcomers find their state."""

        def look() -> set[str]:
            self._invite()
            self._settle()
            return self._ready()

        present = self._patience.until(need, look)
        self._need, self._took = need, set()
        return self._held.gathered(present)

    def save(self, number: int) -> Saved:
        """Let the nodes keep what they hold; a node that comes later is told this round.

        A node that owes an answer keeps what it had when it gave the last one. Where a link is lost
        meanwhile, and too few would be left without it, it is waited for: its process may live.
        """
        due, before = self._took - self._behind, dict(self._held.rounds)
        kept: set[str] = set()
        lost: dict[str, str] = {}
        self._opening = replace(self._opening, number=number)
        self._held.rounds |= dict.fromkeys(due, number)  # what they come back with, if they do

        def keep(names: set[str]) -> None:
            for name, answer in self._rounds("save", names).items():
                if not isinstance(answer, Lost):
                    kept.add(name)
                    self._held.note(name, answer)
                elif name in due & self._ready():  # it is here, and cannot
                    lost[name] = answer.reason

        def look() -> set[str]:
            self._invite()
            self._settle()
            left = due - kept - lost.keys()
            gone = self._held.gone
            lost.update({name: gone.pop(name) for name in left & gone.keys()})
            keep((left - lost.keys()) & self._ready())
            hopeless = len(due - lost.keys()) < need
            return due if hopeless else due & kept

        need = min(self._need, len(due))
        keep(self._ready() - self._behind)
        if len(due & kept) < need:
            self._patience.until(need, look)
        for name in due - kept:
            lost.setdefault(name, "its link was lost before it had kept its state of the round")
            self._held.note(name, before.get(name))
        return Saved(self._held.rounds, lost)

    def restore(self, number: int, held: Mapping[str, int]) -> set[str]:
        """Take the nodes back to what they kept; one that is away goes back when it comes."""
        self._opening = replace(self._opening, number=number)
        self._held.rounds = dict(held)
        self._undone = set(self._known)
        return self._go_back(self._ready())

    def _go_back(self, names: set[str]) -> set[str]:
        """Take nodes back to what they kept, and return those that are there now."""
        back = set()
        for name, answer in self._rounds("restore", names).items():
            if not isinstance(answer, Lost):
                self._undone.discard(name)
                if self._held.came(name, answer):
                    back.add(name)
        return back

    def close(self, *, finished: bool) -> None:
        """End all sessions; after a finished run the nodes need their state no more."""
        present = self._ready()
        if finished:
            self._control("forget", present - self._behind)
        self._closing = True
        self._sessions.close("the run has finished" if finished else "the run has ended early")
        deadline = time.monotonic() + GOODBYE_SECONDS
        while present & {invited.name for invited in self._open.values()}:
            if time.monotonic() > deadline:
                break
            self._collect()
            time.sleep(POLL_SECONDS)

    def _ready(self) -> set[str]:
        """Who is connected and knows where the run is."""
        connected = {*self._sessions.clients}
        self._sessions.tell()  # from here on `_arrived` knows of all of them
        with self._lock:
            return connected - self._arrived

    def _settle(self) -> None:
        """Tell those who have joined where the run is."""
        connected = {*self._sessions.clients}
        self._sessions.tell()
        with self._lock:
            joined = self._arrived & connected
            self._arrived -= joined
        self._go_back(joined & self._undone)
        answers = self._control("settle", joined - self._undone)
        found: dict[str, Arrival] = {}
        for name, answer in answers.items():
            try:
                found[name] = Arrival.decode(answer)
            except ValueError as error:
                log.warning("%s: settle: %s", name, error)
        with self._lock:
            self._arrived |= joined - found.keys()
        self._known |= found.keys()
        for name, arrival in found.items():
            self._held.came(name, arrival.round)
        self.counts |= {name: arrival.counts for name, arrival in found.items()}
        if found:
            log.info("joined: %s", ", ".join(sorted(found)))

    def _rounds(self, verb: str, names: set[str]) -> dict[str, int | Lost | None]:
        """Ask nodes to keep their state, or to go back; return which round each state is of now."""
        lost: dict[str, Lost] = {}
        answers: dict[str, int | Lost | None] = {}
        for name, reply in self._control(verb, names, lost).items():
            try:
                answers[name] = read_round(json.loads(reply))
            except ValueError as error:
                answers[name] = Lost(str(error))
        return answers | lost

    def _control(
        self, verb: str, names: set[str], lost: dict[str, Lost] | None = None
    ) -> dict[str, bytes]:
        """Ask nodes what the framework knows nothing of, and return the answers that came."""
        number = self._opening.number
        places = {} if verb == "save" else self._held.places(names, number)
        asks = {n: json.dumps([verb, places.get(n, number)]).encode() for n in sorted(names)}
        seconds = self._patience.deadline_seconds
        answers: dict[str, bytes] = {}
        for name, reply in self._sessions.carry(
            asks, channel="control", deadline_seconds=seconds, most_bytes=CONTROL_BYTES
        ):
            if isinstance(reply, Lost):
                log.warning("%s: %s: %s", name, verb, reply.reason)
                if lost is not None:
                    lost[name] = reply
            else:
                answers[name] = reply
        return answers

    def say(self, name: str, verb: str, value: object, most_bytes: int = CONTROL_BYTES) -> bytes:
        """Ask one node what no framework asks, and return its answer.

        Raises:
            RoundFailed: there is none.
        """
        seconds, asked = self._patience.deadline_seconds, json.dumps([verb, value]).encode()
        for _, reply in self._sessions.carry(
            {name: asked}, channel="control", deadline_seconds=seconds, most_bytes=most_bytes
        ):
            if not isinstance(reply, Lost):
                return reply
            raise RoundFailed(f"{name}: {verb}: {reply.reason}")
        raise RoundFailed(f"{name}: {verb}: no answer")

    def _invite(self) -> None:
        self._collect()
        connected, nodes = {*self._sessions.clients}, self._mail.nodes()
        self._give_up_lost(nodes, connected)
        busy = connected | {invited.name for invited in self._open.values()}
        contents, invited = {}, {}
        for node, online in nodes.items():
            name = online.name
            if not name:
                raise UserError(
                    'transport="session"',
                    "these nodes have no names, as in Flower's simulation",
                    'Write transport="messages", or register each node with --name',
                )
            if name in busy or time.monotonic() < self._not_before.get(name, 0.0):
                continue
            token = self._sessions.invite(name)
            contents[node] = opening_record(self._opening, address=self._address, token=token)
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

    def _collect(self) -> None:
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
        level = logging.INFO if self._closing else logging.WARNING
        log.log(level, "%s: its session has ended: %s", name, reason)
