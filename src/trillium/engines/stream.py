"""The session stream, server's side: opaque bytes out to named clients, and their replies back.

Each client holds one bidirectional gRPC stream with mutual TLS and is let in with a single-use token
issued for the common name of its certificate. It answers one ask at a time. `engines/session.py` is the
other end, `engines/frames.py` what crosses, and neither side knows what the bytes mean.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, Self

import grpc

from trillium.engines.changes import Changes, OnChange
from trillium.engines.frames import StreamConfig
from trillium.engines.link import Ask, Link, Refused, Replies
from trillium.engines.patience import Grace, Wait
from trillium.engines.revoked import Revoked, warn_of_end
from trillium.engines.secure import STREAMS, ServerTLS, listen, streams
from trillium.engines.tokens import Tokens
from trillium.federation.parts import Lost

REVOKED: Final = "its key was revoked"


class SessionServer:
    """Lets clients in, carries asks to them, and lets them go.

    Threads may call everything here at the same time. A server that is not closed keeps the process
    alive, so use it in a `with` block. It listens on `host:port`; port 0 takes a free one.
    Who has a key that is listed in the file `revoked` is not let in, and sent away within a second.
    `on_change` is called with `(client, "joined" | "lost" | "refused", reason)`, in the order of
    the events and never twice at once; it must return soon.
    """

    def __init__(
        self,
        address: str,
        tls: ServerTLS,
        config: StreamConfig = StreamConfig(),
        on_change: OnChange | None = None,
        revoked: Path | None = None,
    ) -> None:
        self.config = config
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._changes = Changes(on_change)
        self._links: dict[str, Link] = {}
        self._arriving: set[Link] = set()
        self._left: dict[str, str] = {}
        self._late: list[tuple[str, str, int]] = []
        self._tokens = Tokens()
        self._revoked = Revoked(revoked)
        self._revoked.changed()
        self._sequence = itertools.count(1)
        self._closed: str | None = None
        self._pool = ThreadPoolExecutor(streams(config), thread_name_prefix="session-out")
        self._server, self.port = listen(address, tls, config, self._pool, self._serve)
        self._server.start()
        if revoked is not None:
            watch = (lambda: self._closed is not None, self._expel)
            threading.Thread(target=self._revoked.watch, args=watch, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close("the server has ended")

    def invite(self, name: str) -> str:
        """Return a new single-use token for a client; every earlier one of that name becomes void.

        A client that is connected stays so, but if its link is lost it cannot come back by itself.
        """
        with self._lock:
            return self._tokens.invite(name)

    @property
    def clients(self) -> list[str]:
        """The clients that are connected now, sorted."""
        with self._lock:
            return sorted(self._links)

    @property
    def owing(self) -> set[str]:
        """The clients that are at work on an ask that was given up: they would not hear another."""
        with self._lock:
            return {name for name, link in self._links.items() if link.owes}

    def take_late(self, channel: str) -> list[tuple[str, int]]:
        """Return who has answered an ask of a channel too late since the last time, and the bytes."""
        with self._lock:
            found = [(name, size) for name, where, size in self._late if where == channel]
            self._late = [entry for entry in self._late if entry[1] != channel]
            return found

    def wait(self, names: Iterable[str], seconds: float) -> set[str]:
        """Wait until these clients are connected or the time is over; return those that are."""
        wanted = set(names)
        with self._lock:
            self._changed.wait_for(lambda: wanted <= self._links.keys() or self._closed, seconds)
            return wanted & self._links.keys()

    def carry(
        self,
        requests: Mapping[str, bytes],
        *,
        channel: str = "message",
        deadline_seconds: float | None = None,
        most_bytes: int | None = None,
        grace: Grace | None = None,
    ) -> Iterator[tuple[str, bytes | Lost]]:
        """Send all requests at once and yield `(client, reply)` as replies arrive.

        Every client of the requests is yielded exactly once, with its reply or with why there is
        none. Nothing is sent before the first is asked for; the deadline for all of them runs from
        then on. A client that is still busy with an earlier ask gets its request when it is free.
        One that answers with more than `most_bytes` breaks the protocol, and its stream ends. With
        `grace`, who is slower than enough others has only so long.
        """
        yield from self.post(
            requests,
            channel=channel,
            deadline_seconds=deadline_seconds,
            most_bytes=most_bytes,
            grace=grace,
        )

    def post(
        self,
        requests: Mapping[str, bytes],
        *,
        channel: str = "message",
        deadline_seconds: float | None = None,
        most_bytes: int | None = None,
        grace: Grace | None = None,
    ) -> Iterator[tuple[str, bytes | Lost]]:
        """Send all requests now, and return what yields the replies as `carry` does."""
        most = min(most_bytes or self.config.max_bytes, self.config.max_bytes)
        replies = self._replies(requests, channel, Wait(deadline_seconds, grace), most)
        next(replies)
        return replies

    def _replies(
        self,
        requests: Mapping[str, bytes],
        channel: str,
        wait: Wait,
        most: int,
    ) -> Iterator[tuple[str, bytes | Lost]]:
        """Send all requests, yield once, and then each reply; who stops early gives up the rest."""
        replies: queue.SimpleQueue[tuple[str, bytes | Lost]] = queue.SimpleQueue()
        waiting = {
            name: self.submit(name, channel, data, replies, most) for name, data in requests.items()
        }
        try:
            yield "", b""  # they are on their way
            while waiting:
                try:
                    name, reply = replies.get(timeout=wait.left)
                except queue.Empty:
                    break
                del waiting[name]
                wait.note(reply)
                yield name, reply
                del reply  # else it stays in memory until the next one is complete
            for name in list(waiting):
                sent = self.abandon(waiting.pop(name))
                why = "no reply" if sent else "still busy with an earlier ask, not free"
                yield name, Lost(f"{why} {wait.why}", sent)
        finally:
            for ask in waiting.values():  # the caller wants no more
                self.abandon(ask)

    def disconnect(self, name: str, reason: str) -> None:
        """End a client's session; it is told why and does not come back by itself."""
        with self._lock:
            self._tokens.void(name)
            if name in self._links:
                self._links[name].end(grpc.StatusCode.OK, reason)
        self.tell()

    def close(self, reason: str) -> None:
        """Tell every client that its session is over, and stop; asks that are open are lost.

        Takes at most `close_seconds`. A stream to a client that does not read any more is left to its
        keep-alive; until that ends it, its thread keeps the process alive.
        """
        with self._lock:
            if self._closed is None:
                self._closed = reason
            for link in list(self._links.values()):
                link.end(grpc.StatusCode.OK, self._closed)
            for link in list(self._arriving):
                link.end(grpc.StatusCode.PERMISSION_DENIED, self._closed)
            self._changed.notify_all()
        self.tell()
        self._server.stop(self.config.close_seconds).wait(self.config.close_seconds)
        self._pool.shutdown(wait=False)

    def submit(self, name: str, channel: str, data: bytes, replies: Replies, most: int) -> Ask:
        """Hand an ask to its client's link, or answer it at once."""
        ask = Ask(name, next(self._sequence), channel, data, replies, most)
        with self._lock:
            link = self._links.get(ask.name)
            if link is None:
                why = self._closed or self._left.get(ask.name) or "it has not joined yet"
                ask.lose(f"not connected: {why}", sent=False)
            elif len(ask.data) > self.config.max_bytes:
                limit = f"at most {self.config.max_bytes} may be sent"
                ask.lose(f"the ask has {len(ask.data)} bytes, {limit}", sent=False)
            else:
                link.submit(ask)
        return ask

    def abandon(self, ask: Ask) -> bool:
        """Give an ask up, so that its reply is discarded; return whether it had gone out."""
        with self._lock:
            ask.abandoned = True
            link = self._links.get(ask.name)
            return link is None or not link.withdraw(ask)

    # What a connection needs of its server; see `link.Host`

    def _serve(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        link = Link(context, self, threading.Condition(self._lock))
        with self._lock:
            others = sum(other.name == link.name for other in self._arriving)
            if others < STREAMS:
                self._arriving.add(link)
        if others >= STREAMS:
            context.abort(grpc.StatusCode.UNAVAILABLE, "too many connections with this certificate")
        return link.serve(requests)

    def offer(self, link: Link, token: str) -> str:
        """Check the token of a hello and return one to come back with, or raise `Refused`."""
        with self._lock:
            self._check(link, token)
            return self._tokens.offer(link.name, token)

    def join(self, link: Link, token: str, offered: str) -> None:
        """Let a client in, in place of the link that it had before, if its token is still good."""
        with self._lock:
            self._check(link, token)
            old = self._links.get(link.name)
            if old is not None:
                old.end(grpc.StatusCode.UNAVAILABLE, "the client came back on a new link")
            self._tokens.settle(link.name, offered)
            self._arriving.discard(link)
            self._links[link.name] = link
            link.joined = True
            warn_of_end(link.name, link.certificate)
            self._changes.add(link.name, "joined", f"from {link.context.peer()}")
            link.changed.notify_all()
            self._changed.notify_all()
        self.tell()
        if old is not None:
            old.context.cancel()  # it may be held up by a link that no longer moves

    def _expel(self) -> None:
        """End the sessions of revoked keys."""
        with self._lock:
            for link in [*self._links.values(), *self._arriving]:
                if self._revoked.has(link.certificate):
                    self._tokens.void(link.name)
                    link.end(grpc.StatusCode.PERMISSION_DENIED, REVOKED)
        self.tell()

    def is_revoked(self, name: str) -> bool:
        """Whether a client was sent away because its key was revoked."""
        with self._lock:
            return self._left.get(name) == REVOKED and name not in self._links

    def _check(self, link: Link, token: str) -> None:
        """Check, under the lock, that a token lets this connection in now."""
        if self._closed is not None:
            raise Refused(f"the session is over: {self._closed}")
        if self._revoked.has(link.certificate):
            raise Refused(REVOKED)
        use = self._tokens.check(link.name, token)
        if use is None or link.status is not None:
            raise Refused("the token is not valid: unknown, used before, or replaced by another")
        if link.name in self._links:
            if use == "invited":
                raise Refused("this client is connected already")
        elif len(self._links) >= self.config.max_clients:
            raise Refused(f"{self.config.max_clients} clients are connected, which is the limit")

    def ended(self, link: Link, reason: str) -> None:
        """Take note, under the lock, that a connection is over."""
        self._arriving.discard(link)
        if self._links.get(link.name) is link:
            del self._links[link.name]
            self._left[link.name] = reason
            self._changed.notify_all()
        self._changes.add(link.name, "lost" if link.joined else "refused", reason)

    def late(self, ask: Ask, size: int) -> None:
        """Take note, under the lock, of an answer that nobody waits for any more."""
        self._late.append((ask.name, ask.channel, size))

    def tell(self) -> None:
        """Report what has happened, outside the lock."""
        self._changes.tell()
