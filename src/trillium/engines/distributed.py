"""The distributed engine: nodes on machines of their own, a session open with each of them.

One Flower message opens a session, and the asks of the run cross its stream. A node may go and come
back at any time: its link lost and restored, its process or its SuperNode started anew. One that does
not answer is not asked again until it does.
"""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from trillium.engines.changes import Change, OnChange
from trillium.engines.flights import Flights
from trillium.engines.frames import StreamConfig
from trillium.engines.held import Held
from trillium.engines.invitations import Invitations
from trillium.engines.opening import Arrival, Opening, read_round
from trillium.engines.patience import OVER, OWES, POLL_SECONDS, Patience
from trillium.engines.roster import Mail
from trillium.engines.secure import ServerTLS
from trillium.engines.stream import SessionServer
from trillium.federation.engine import Gathered, Saved
from trillium.federation.failed import RoundFailed
from trillium.federation.parts import Lost

log = logging.getLogger(__name__)

CONTROL_BYTES: Final = 64 * 1024  # of an answer that is none to the framework
GOODBYE_SECONDS: Final = 10.0
BACK: Final = "it came back during the round, and takes part from the next one on"
AWAY: Final = "not connected: the link was lost"


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
        max_clients: int = StreamConfig().max_clients,
        on_change: OnChange | None = None,
        revoked: Path | None = None,
    ) -> None:
        self._opening, self._patience = opening, patience
        self.counts: dict[str, Mapping[str, int]] = {}  # of the texts of nodes, as these say
        self._known: set[str] = set()
        self._behind: set[str] = set()  # did not answer their last ask
        self._took: set[str] = set()  # answered in this round
        self._held = Held()
        self._undone: set[str] = set()  # have not gone back with the others
        self._need = 0
        self._unsent: dict[str, str] = {}  # could not be asked what was last launched, and why
        self.most_bytes = CONTROL_BYTES  # of a reply; the run says more as soon as it is set up
        self._lock = threading.Lock()
        self._arrived: set[str] = set()  # have joined, and not been told yet where the run is
        self._round_ends = math.inf
        self._tell = on_change
        config = StreamConfig(max_clients=max_clients)
        self._sessions = SessionServer(bind, tls, config, self._on_change, revoked)
        self._flights = Flights(self._sessions)
        self._invitations = Invitations(mail, self._sessions, address)

    def _on_change(self, name: str, change: Change, reason: str) -> None:
        if change == "joined":
            with self._lock:
                self._arrived.add(name)
        if self._tell is not None:
            self._tell(name, change, reason)

    def late(self) -> list[tuple[str, int]]:
        """Return who has answered too late since the last time, and how many bytes."""
        return self._sessions.take_late("message")

    def revoked(self) -> set[str]:
        """Return who has answered in this round, and was sent away since as its key was revoked."""
        return {name for name in self._took if self._sessions.is_revoked(name)}

    @property
    def clients(self) -> Sequence[str]:
        """Names of the nodes that have been here, sorted."""
        return sorted(self._known)

    def carry(self, requests: Mapping[str, bytes]) -> Iterator[tuple[str, bytes | Lost]]:
        """Ask over the streams; who came back since the round began does not know where it is."""
        yield from self.post(requests)

    def post(self, requests: Mapping[str, bytes]) -> Iterator[tuple[str, bytes | Lost]]:
        """Send the requests now, and return what yields the replies as `carry` does."""
        out, asks, seconds = self._divided(requests)
        replies = self._sessions.post(
            asks,
            deadline_seconds=seconds,
            most_bytes=self.most_bytes,
            grace=self._patience.grace,
        )
        return self._noted(out, asks, replies)

    def launch(self, requests: Mapping[str, bytes]) -> None:
        """Send the requests now; the answers are among the arrivals, whenever they come."""
        self._unsent, asks, seconds = self._divided(requests)
        self._flights.send(asks, seconds, self.most_bytes)

    def arrivals(self) -> Iterator[tuple[str, bytes | Lost]]:
        """Yield the answers to all that is under way as they arrive, or why one will not."""
        out, self._unsent = self._unsent, {}
        return self._noted(out, (), self._flights.arrivals())

    def _divided(
        self, requests: Mapping[str, bytes]
    ) -> tuple[dict[str, str], dict[str, bytes], float]:
        """Return who cannot be asked now, and why; what the others are asked; how long they have."""
        self._sessions.tell()
        with self._lock:
            waiting, connected = self._arrived | self._undone, {*self._sessions.clients}
        out = {name: BACK if name in connected else AWAY for name in waiting}
        out |= dict.fromkeys(self._sessions.owing | self._flights.clients, OWES)
        seconds = self._patience.deadline(self._round_ends)
        if not seconds:
            out |= dict.fromkeys(requests, OVER)
        asks = {name: data for name, data in requests.items() if name not in out}
        return {name: why for name, why in out.items() if name in requests}, asks, seconds

    def _noted(
        self,
        out: Mapping[str, str],
        asked: Collection[str],
        replies: Iterator[tuple[str, bytes | Lost]],
    ) -> Iterator[tuple[str, bytes | Lost]]:
        for name in sorted(out):
            yield name, Lost(out[name], sent=False)
        waiting = {*asked}
        try:
            for name, reply in replies:
                waiting.discard(name)
                if isinstance(reply, Lost):
                    self._behind.add(name)
                else:
                    self._took.add(name)
                    self._behind.discard(name)
                    self._invitations.answered(name)
                yield name, reply
        finally:
            self._behind |= waiting  # nobody waits for them any more

    def gather(self, need: int) -> Gathered:
        """Invite who is online, wait for enough of them, and let newcomers find their state."""

        def look() -> set[str]:
            self._invitations.send(self._opening)
            self._settle()
            return self._ready()

        present = self._patience.until(need, look)
        self._need, self._took = need, set()
        self._round_ends = self._patience.ends()
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
            self._invitations.send(self._opening)
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
        self._flights.give_up()
        self._opening = replace(self._opening, number=number)
        self._held.rounds = dict(held)
        here, self._undone = self._ready(), set(self._known)
        self._go_back(here)
        return set(self._known)  # nobody is asked anything before it is back

    def _go_back(self, names: set[str]) -> None:
        """Take nodes back to what they kept."""
        for name, answer in self._rounds("restore", names).items():
            if not isinstance(answer, Lost):
                self._undone.discard(name)
                self._held.came(name, answer)

    def close(self, *, finished: bool) -> None:
        """End all sessions; after a finished run the nodes need their state no more."""
        self._flights.give_up()
        present = self._ready()
        if finished:
            self._control("forget", present - self._behind)
        self._invitations.closing = True
        self._sessions.close("the run has finished" if finished else "the run has ended early")
        deadline = time.monotonic() + GOODBYE_SECONDS
        while present & self._invitations.unanswered:
            if time.monotonic() > deadline:
                break
            self._invitations.collect()
            time.sleep(POLL_SECONDS)

    def _ready(self) -> set[str]:
        """Who is connected, knows where the run is, and owes no answer and is at work on none."""
        busy = self._sessions.owing | self._flights.clients
        connected = {*self._sessions.clients} - busy
        self._sessions.tell()  # from here on `_arrived` knows of all of them
        with self._lock:
            return connected - self._arrived - self._undone

    def _settle(self) -> None:
        """Tell those who have joined where the run is."""
        connected = {*self._sessions.clients}
        self._sessions.tell()
        with self._lock:
            joined = self._arrived & connected
            self._arrived -= joined
            known = connected - self._arrived - self._sessions.owing
        answers = self._control("settle", joined - self._undone)
        self._go_back(known & self._undone)
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
