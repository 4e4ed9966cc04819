"""One client's connection at the server: the handshake, its asks one after the other, its end.

Two threads serve a connection: gRPC's own takes the frames that go out and is held up when the client
does not read; a second reads what comes in. The server's one lock guards all state and is never held
while anything is sent, received or called back.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import grpc
from cryptography import x509

from trillium.engines import frames
from trillium.engines.frames import Frame, FrameError, Kind, StreamConfig, Whole
from trillium.errors import one_line
from trillium.federation.parts import Lost

log = logging.getLogger(__name__)


class Refused(Exception):  # noqa: N818 - it is what happens, and is caught by name
    """This connection is not let in."""


class Host(Protocol):
    """What a connection needs of its server."""

    config: StreamConfig

    def offer(self, link: Link, token: str) -> str:
        """Check the token of a hello and return one to come back with; raises `Refused`."""

    def join(self, link: Link, token: str, offered: str) -> None:
        """Let a client in that has the offered token; raises `Refused`."""

    def ended(self, link: Link, reason: str) -> None:
        """Take note, under the lock, that a connection is over."""

    def late(self, ask: Ask, size: int) -> None:
        """Take note, under the lock, of an answer that nobody waits for any more."""

    def tell(self) -> None:
        """Report what has happened, outside the lock."""


class Replies(Protocol):
    """Where the answer to an ask goes."""

    def put(self, item: tuple[str, bytes | Lost]) -> None:
        """Take an answer."""


@dataclass(eq=False)
class Ask:
    """One request on its way to one client; `data` is let go as soon as it is on its way."""

    name: str
    sequence: int
    channel: str
    data: bytes
    replies: Replies
    most_bytes: int
    abandoned: bool = False

    def lose(self, reason: str, *, sent: bool = True) -> None:
        """Answer with why there is no reply, unless nobody waits for it any more."""
        if not self.abandoned:
            self.replies.put((self.name, Lost(reason, sent)))


@dataclass(eq=False)
class Link:
    """One connection; the name is the common name of the certificate that TLS has verified."""

    context: grpc.ServicerContext
    host: Host
    changed: threading.Condition
    name: str = ""
    certificate: x509.Certificate = field(init=False)
    joined: bool = False
    status: tuple[grpc.StatusCode, str] | None = None
    _welcome: bytes | None = None
    _asks: deque[Ask] = field(default_factory=deque)
    _current: Ask | None = None

    def __post_init__(self) -> None:
        names = self.context.auth_context().get("x509_common_name", [])
        self.name = names[0].decode("utf-8", "replace") if len(names) == 1 else ""
        [pem] = self.context.auth_context()["x509_pem_cert"]
        self.certificate = x509.load_pem_x509_certificate(pem)

    # Under the lock

    def submit(self, ask: Ask) -> None:
        """Queue an ask; it goes out when the client is free."""
        self._asks.append(ask)
        self.changed.notify_all()

    def withdraw(self, ask: Ask) -> bool:
        """Take an ask back; return whether it had not gone out yet."""
        if ask not in self._asks:
            return False
        self._asks.remove(ask)
        return True

    @property
    def owes(self) -> bool:
        """Whether the client is at work on an ask that was given up."""
        return self._current is not None and self._current.abandoned

    def end(self, code: grpc.StatusCode, reason: str) -> None:
        """End the connection; what it had to answer is lost. The first reason counts."""
        if self.status is not None:
            return
        self.status = (code, reason)
        for ask in (self._current, *self._asks):
            if ask is not None:
                ask.lose(reason)
        self._current = None
        self._asks.clear()
        self.changed.notify_all()
        self.host.ended(self, reason)

    # What goes out

    def serve(self, requests: Iterator[bytes]) -> Iterator[bytes]:
        """Yield what goes out; gRPC takes a frame when the one before is sent."""
        threading.Thread(
            target=self._read, args=(requests,), name=f"session-in-{self.name}", daemon=True
        ).start()
        yield from self._greet()
        while (outgoing := self._next()) is not None:
            for frame in outgoing:
                if self.status:
                    break  # nobody waits for the reply any more
                yield frame
        assert self.status is not None
        code, reason = self.status
        if code is grpc.StatusCode.OK:
            yield frames.text(Kind.BYE, 0, reason)
        self.context.set_code(code)
        self.context.set_details(reason)

    def _greet(self) -> Iterator[bytes]:
        """Yield the welcome, and return when the client is in or not let in."""
        seconds = self.host.config.hello_seconds
        until = time.monotonic() + seconds
        with self.changed:
            self.changed.wait_for(lambda: self._welcome or self.status, seconds)
            welcome = self._welcome
        if welcome is not None:
            yield welcome
        with self.changed:
            self.changed.wait_for(lambda: self.joined or self.status, until - time.monotonic())
            if not self.joined:
                self.end(grpc.StatusCode.PERMISSION_DENIED, f"no hello within {seconds:g} s")
        self.host.tell()

    def _next(self) -> Iterator[bytes] | None:
        """Return the frames of the next ask as soon as the client is free for it; None at the end."""
        with self.changed:
            self.changed.wait_for(lambda: self.status or (self._asks and self._current is None))
            if self.status:
                return None
            ask = self._current = self._asks.popleft()
            data, ask.data = ask.data, b""
        return frames.encode(
            Kind.ASK, ask.sequence, data, ask.channel, self.host.config.chunk_bytes
        )

    # What comes in

    def _read(self, requests: Iterator[bytes]) -> None:
        code, reason = grpc.StatusCode.UNAVAILABLE, "the link was lost"
        patience_seconds = self.host.config.close_seconds
        try:
            self._hello(requests)
            for whole in frames.messages(requests, self.host.config.max_bytes, self._check):
                if whole.kind is Kind.BYE:
                    reason, patience_seconds = f"the client left: {whole.text}", 0.0
                    break
                self._answered(whole)
                del whole  # else it stays in memory until the next one is complete
        except Refused as refusal:
            code, reason = grpc.StatusCode.PERMISSION_DENIED, str(refusal)
        except FrameError as error:
            code, reason = grpc.StatusCode.INVALID_ARGUMENT, f"it broke the protocol: {error}"
        except (grpc.RpcError, StopIteration):
            pass
        except Exception as error:
            log.exception("%s: its stream failed", self.name, extra={"client": self.name})
            code, reason = grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}"
        with self.changed:
            self.end(code, reason)
        self.host.tell()
        self._hang_up(patience_seconds)

    def _hello(self, requests: Iterator[bytes]) -> None:
        fields = {"version": int, "name": str, "token": str}
        hello = frames.read_control(frames.parse(next(requests)), Kind.HELLO, fields)
        name, token = str(hello["name"]), str(hello["token"])
        if hello["version"] != frames.PROTOCOL:
            raise Refused(
                f"protocol version {hello['version']}, this server speaks {frames.PROTOCOL}"
            )
        if not self.name or name != self.name:
            raise Refused(f"the certificate is not that of {one_line(name)[:80]!r}")
        offered = self.host.offer(self, token)
        with self.changed:
            self._welcome = frames.control(Kind.WELCOME, token=offered)
            self.changed.notify_all()
        frames.read_control(frames.parse(next(requests)), Kind.READY, {})
        self.host.join(self, token, offered)

    def _check(self, first: Frame) -> None:
        ask = self._current
        if first.kind is Kind.BYE:
            return
        if first.kind not in (Kind.REPLY, Kind.ERROR):
            raise FrameError(f"{first.kind.name} where an answer belongs")
        if ask is None or first.sequence != ask.sequence:
            raise FrameError("an answer to what was not asked")
        if first.total_bytes > ask.most_bytes:
            raise FrameError(
                f"{first.kind.name} of {first.total_bytes} bytes, at most {ask.most_bytes} are accepted"
            )

    def _answered(self, whole: Whole) -> None:
        """Pass an answer on, or discard it if it comes too late."""
        with self.changed:
            ask, self._current = self._current, None
            self.changed.notify_all()
            if ask is not None and ask.abandoned:
                self.host.late(ask, len(whole.data))
        if ask is None or ask.abandoned:
            log.info("%s: a late reply was discarded", self.name, extra={"client": self.name})
        elif whole.kind is Kind.ERROR:
            ask.lose(whole.text)
        else:
            ask.replies.put((ask.name, whole.data))

    def _hang_up(self, patience_seconds: float) -> None:
        """Give gRPC a moment to say how it ended, to a client that may not read any more."""
        over = threading.Event()
        if self.context.add_callback(over.set) and not over.wait(patience_seconds):
            self.context.cancel()
