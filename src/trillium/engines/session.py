"""The client's side of a session: connect, serve asks, come back after a lost link."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

import grpc

from trillium.engines import frames
from trillium.engines.frames import Frame, FrameError, Kind, StreamConfig, Whole
from trillium.engines.secure import METHOD, SERVICE, ClientTLS, client_options
from trillium.errors import PeerError, one_line, shareable

log = logging.getLogger(__name__)

Handler = Callable[[bytes], bytes]

# Trying again cannot help: the server, or gRPC in its name, said no.
FINAL: Final = {
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNIMPLEMENTED,
}
FIRST_PAUSE_SECONDS: Final = 0.1
LONGEST_PAUSE_SECONDS: Final = 2.0
LEAST_SECONDS: Final = 0.5  # that an attempt gets, however late it is made


class SessionRefused(RuntimeError):  # noqa: N818 - it is what happened, and is caught by name
    """The server did not let this client in, or could not be reached."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Summary:
    """What a session was; `complete` if the server ended it, not a link lost for good."""

    closed: str
    complete: bool
    asks: int
    bytes_up: int
    bytes_down: int
    reconnects: int
    seconds: float


def serve_session(
    address: str,
    tls: ClientTLS,
    name: str,
    token: str,
    handlers: Mapping[str, Handler],
    config: StreamConfig = StreamConfig(),
) -> Summary:
    """Connect to a session server and serve its asks, one at a time, until the session ends.

    The session that was is returned also when its link was lost for good; `SessionRefused` says
    that it did not begin.

    Args:
        address: `host:port`; the host must be in the server's certificate.
        tls: the client's certificate, whose common name is `name`.
        token: what the server issued for this name; it is good for one session.
        handlers: by channel, what answers an ask. One that raises answers with what is fit to be told.
    """
    return _Session(address, tls, name, token, handlers, config).run()


@dataclass
class _Session:
    address: str
    tls: ClientTLS
    name: str
    token: str
    handlers: Mapping[str, Handler]
    config: StreamConfig
    asks: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    welcomes: int = 0
    _started: float = field(default_factory=time.monotonic)

    def run(self) -> Summary:
        """Keep a stream open until the server closes it, refuses it, or cannot be reached."""
        until = self._started + self.config.connect_seconds
        pause = FIRST_PAUSE_SECONDS
        while True:
            welcomes = self.welcomes
            stream = _Stream(self, until)
            try:
                closed = stream.serve()
            except FrameError as error:
                self._log(logging.ERROR, f"the server broke the protocol: {error}")
                return self._summary(f"the server broke the protocol: {error}", complete=False)
            except grpc.RpcError as error:
                code, reason = _status(error)
            else:
                return self._summary(closed, complete=True)
            if self.welcomes > welcomes:
                pause = FIRST_PAUSE_SECONDS
                until = time.monotonic() + self.config.reconnect_seconds
            final = code in FINAL or "CERTIFICATE_VERIFY_FAILED" in reason
            if final or time.monotonic() + pause > until:
                return self._given_up(code, reason, final)
            self._log(logging.WARNING, f"no link to {self.address}: {reason}; trying again")
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def _given_up(self, code: grpc.StatusCode, reason: str, final: bool) -> Summary:
        """Return what the session was, or raise if it never began."""
        refused = code is grpc.StatusCode.PERMISSION_DENIED
        if self.welcomes == 0 or (self.welcomes == 1 and not self.asks and refused):
            patience = f" within {self.config.connect_seconds:g} s"
            where = f"no session with {self.address}{'' if final else patience}: "
            raise SessionRefused(reason if refused else where + reason)
        patience = f"no way back within {self.config.reconnect_seconds:g} s: "
        what = "the link was lost, and the server refused to restore it: " if refused else ""
        return self._summary(what + reason if final else patience + reason, complete=False)

    def welcomed(self, token: str) -> None:
        self.token = token
        self.welcomes += 1
        self._log(logging.INFO, f"session with {self.address}")

    def check(self, first: Frame) -> None:
        if first.kind not in (Kind.ASK, Kind.BYE):
            raise FrameError(f"{first.kind.name} where an ask belongs")

    def answer(self, ask: Whole) -> Iterator[bytes]:
        self.asks += 1
        self.bytes_down += len(ask.data)
        try:
            if ask.channel not in self.handlers:
                known = ", ".join(sorted(self.handlers))
                raise PeerError(f"there is no channel {ask.channel!r}, only {known}")
            reply = self.handlers[ask.channel](ask.data)
            if len(reply) > self.config.max_bytes:
                limit = self.config.max_bytes
                raise PeerError(f"the reply has {len(reply)} bytes, at most {limit} may be sent")
        except Exception as error:
            self._log(logging.ERROR, f"{ask.channel} failed", exc_info=True)
            reason = f"{ask.channel} failed: {shareable(error)}"
            return iter((frames.text(Kind.ERROR, ask.sequence, reason),))
        self.bytes_up += len(reply)
        return frames.encode(Kind.REPLY, ask.sequence, reply, chunk_bytes=self.config.chunk_bytes)

    def _summary(self, closed: str, *, complete: bool) -> Summary:
        self._log(logging.INFO if complete else logging.WARNING, f"session ended: {closed}")
        return Summary(
            closed=closed,
            complete=complete,
            asks=self.asks,
            bytes_up=self.bytes_up,
            bytes_down=self.bytes_down,
            reconnects=max(self.welcomes - 1, 0),
            seconds=time.monotonic() - self._started,
        )

    def _log(self, level: int, what: str, *, exc_info: bool = False) -> None:
        log.log(level, "%s: %s", self.name, what, exc_info=exc_info, extra={"client": self.name})


class _Stream:
    """One attempt: a channel, a call, and the frames that go up."""

    def __init__(self, session: _Session, until: float) -> None:
        self.session, self.until = session, until
        # Holds one message at most: the next ask is read when the answer is here.
        self.outbox: queue.SimpleQueue[Iterator[bytes] | None] = queue.SimpleQueue()

    def serve(self) -> str:
        """Serve asks until the server closes the stream, and return its reason."""
        session = self.session
        options = client_options(session.config)
        with grpc.secure_channel(session.address, session.tls.credentials(), options) as channel:
            method = channel.stream_stream(f"/{SERVICE}/{METHOD}")
            call = method(self._frames())
            try:
                self._greet(call)
                for whole in frames.messages(call, session.config.max_bytes, session.check):
                    if whole.kind is Kind.BYE:
                        return whole.text
                    self.outbox.put(session.answer(whole))
                    del whole  # else it stays in memory until the next one is complete
                raise FrameError("the server ended the stream without a word")
            except FrameError as error:
                self._leave(call, str(error))
                raise
            finally:
                self.outbox.put(None)
                call.cancel()

    def _frames(self) -> Iterator[bytes]:
        for answer in iter(self.outbox.get, None):
            yield from answer

    def _greet(self, call: grpc.Call) -> None:
        session = self.session
        hello = frames.control(
            Kind.HELLO, version=frames.PROTOCOL, name=session.name, token=session.token
        )
        self.outbox.put(iter((hello,)))
        # Neither a host that swallows packets nor a server that never answers may hold us up.
        with _cancelled_after(call, max(self.until - time.monotonic(), LEAST_SECONDS)):
            first = next(call, None)
        if first is None:
            raise FrameError("the server ended the stream without a word")
        welcome = frames.read_control(frames.parse(first), Kind.WELCOME, {"token": str})
        session.welcomed(str(welcome["token"]))
        self.outbox.put(iter((frames.control(Kind.READY),)))

    def _leave(self, call: grpc.Call, reason: str) -> None:
        """Tell the server why this client leaves, and give that a moment to arrive."""
        self.outbox.put(iter((frames.text(Kind.BYE, 0, reason),)))
        with _cancelled_after(call, self.session.config.close_seconds), suppress(grpc.RpcError):
            for _ in call:
                pass  # what is under way would hold up the end


@contextmanager
def _cancelled_after(call: grpc.Call, seconds: float) -> Iterator[None]:
    """Cancel a call if what is done here takes too long."""
    timer = threading.Timer(seconds, call.cancel)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _status(error: grpc.RpcError) -> tuple[grpc.StatusCode, str]:
    code = error.code() or grpc.StatusCode.UNKNOWN
    return code, one_line(error.details() or code.name.lower())
