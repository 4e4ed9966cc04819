"""Frames: how a message crosses the session stream, chunk by chunk, and what a receiver accepts.

One frame is one gRPC message: kind (1 byte), sequence number of the ask (8), length of the whole
message in bytes (8), length of the channel's name (1), the channel's name in ASCII, a chunk of the
message. All numbers are big-endian. A message is its first frame and as many `MORE` frames as it takes.
Handshake, errors and goodbyes are small JSON or text and always one frame.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from trillium.errors import PeerError, one_line

PROTOCOL: Final = 1
MIB: Final = 1024**2
MAX_CHUNK_BYTES: Final = 4 * MIB  # of any sender; what a receiver lets gRPC take in at once
MAX_CONTROL_BYTES: Final = 4096  # of a handshake or an error
MAX_CHANNEL_BYTES: Final = 64
HEADER: Final = struct.Struct("!BQQB")
MAX_FRAME_BYTES: Final = HEADER.size + MAX_CHANNEL_BYTES + MAX_CHUNK_BYTES


class FrameError(PeerError):
    """What the other side sent breaks the protocol; its stream must end."""


class StreamConfig(BaseModel):
    """Limits and patience of a session; the two sides need not have the same.

    Attributes:
        chunk_bytes: how much of a message is sent at once.
        window_bytes: how much may be on its way to this side unread. A link is used in full if this is
            at least its bandwidth times its round trip.
        max_bytes: the longest message that is sent or accepted.
        max_clients: how many clients may be connected to the server.
        hello_seconds: how long the server waits for a new connection to say who it is.
        connect_seconds: how long a client tries to reach the server for the first time.
        reconnect_seconds: how long a client tries to come back after its link was lost.
        keepalive_seconds: how long a link may be silent before the other side is probed.
        keepalive_timeout_seconds: how long a probe may stay unanswered before the link counts as lost.
            It queues behind what was sent before, so a link must carry twice the window in that time.
        close_seconds: how long the server lets streams end by themselves when it closes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    chunk_bytes: int = Field(default=MIB, ge=1, le=MAX_CHUNK_BYTES)
    window_bytes: int = Field(default=MIB, ge=2**16, le=64 * MIB)
    max_bytes: int = Field(default=4 * 1024 * MIB, ge=1, lt=2**63)
    max_clients: int = Field(default=256, ge=1)
    hello_seconds: float = Field(default=10.0, gt=0)
    connect_seconds: float = Field(default=60.0, gt=0)
    reconnect_seconds: float = Field(default=300.0, ge=0)
    keepalive_seconds: float = Field(default=20.0, ge=0.1)
    keepalive_timeout_seconds: float = Field(default=40.0, ge=0.1)
    close_seconds: float = Field(default=5.0, ge=0)


class Kind(IntEnum):
    """What a frame is. A refusal is not a frame but the status that ends the stream."""

    HELLO = 1  # client: who I am, and my token
    WELCOME = 2  # server: the token to come back with
    READY = 3  # client: I have that token
    ASK = 4  # server: a request on a channel
    REPLY = 5  # client: the answer to an ask
    ERROR = 6  # client: why there is no answer to an ask
    MORE = 7  # either: the message goes on
    BYE = 8  # either: why it leaves


CARRIERS: Final = frozenset({Kind.ASK, Kind.REPLY})  # what may be longer than one frame


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame as it was received; `payload` is a view of the received bytes."""

    kind: Kind
    sequence: int
    total_bytes: int
    channel: str
    payload: memoryview


@dataclass(frozen=True, slots=True)
class Whole:
    """A message whose frames have all arrived."""

    kind: Kind
    sequence: int
    channel: str
    data: bytes

    @property
    def text(self) -> str:
        """The content of an `ERROR` or a `BYE`, as it may stand in a log."""
        return one_line(self.data.decode("utf-8", "replace"))


def encode(
    kind: Kind, sequence: int, data: bytes, channel: str = "", chunk_bytes: int = MIB
) -> Iterator[bytes]:
    """Yield the frames of a message one by one, each made when it is asked for."""
    name = channel.encode("ascii")
    assert len(name) <= MAX_CHANNEL_BYTES, channel
    view = memoryview(data)
    head = HEADER.pack(kind, sequence, len(view), len(name)) + name
    yield b"".join((head, view[:chunk_bytes]))
    head = HEADER.pack(Kind.MORE, sequence, len(view), 0)
    for start in range(chunk_bytes, len(view), chunk_bytes):
        yield b"".join((head, view[start : start + chunk_bytes]))


def parse(data: bytes) -> Frame:
    """Read one frame; `FrameError` if it is not one of this protocol."""
    if len(data) < HEADER.size:
        raise FrameError(f"a frame of {len(data)} bytes, its header takes {HEADER.size}")
    number, sequence, total, named = HEADER.unpack_from(data)
    try:
        kind = Kind(number)
    except ValueError:
        raise FrameError(f"a frame of unknown kind {number}") from None
    start = HEADER.size + named
    if named > MAX_CHANNEL_BYTES or len(data) < start:
        raise FrameError(f"a channel name of {named} bytes")
    channel = data[HEADER.size : start]
    if not channel.isascii():
        raise FrameError("a channel name that is not ASCII")
    payload = memoryview(data)[start:]
    if len(payload) > min(total, MAX_CHUNK_BYTES):
        raise FrameError(f"a chunk of {len(payload)} bytes of a message of {total}")
    if kind is Kind.MORE and not payload:
        raise FrameError("an empty chunk")
    if kind not in CARRIERS and kind is not Kind.MORE:
        if total > MAX_CONTROL_BYTES:
            raise FrameError(f"{kind.name} of {total} bytes, at most {MAX_CONTROL_BYTES}")
        if len(payload) != total:
            raise FrameError(f"{kind.name} in more than one frame")
    return Frame(kind, sequence, total, channel.decode("ascii"), payload)


def messages(
    frames: Iterable[bytes], max_bytes: int, check: Callable[[Frame], None]
) -> Iterator[Whole]:
    """Put messages together from their frames and yield each when it is complete.

    Memory is taken for what has arrived, never for what was announced. `check` looks at the first
    frame of each message. What is malformed, out of place or too long is a `FrameError`.
    """
    first: Frame | None = None
    content, left = io.BytesIO(), 0
    for data in frames:
        frame = parse(data)
        if frame.kind is Kind.BYE:  # also inside a message, which then is not wanted any more
            yield Whole(frame.kind, frame.sequence, frame.channel, bytes(frame.payload))
            return
        if first is None:
            if frame.kind is Kind.MORE:
                raise FrameError("a chunk of a message that was not begun")
            if frame.total_bytes > max_bytes:
                name, total = frame.kind.name, frame.total_bytes
                raise FrameError(f"{name} of {total} bytes, at most {max_bytes} are accepted")
            check(frame)
            # A buffer that grows as chunks arrive and becomes the result without another copy.
            first, content, left = frame, io.BytesIO(), frame.total_bytes
        elif frame.kind is not Kind.MORE or frame.sequence != first.sequence:
            raise FrameError(f"{frame.kind.name} inside a message")
        if len(frame.payload) > left:
            raise FrameError(f"more than the {first.total_bytes} bytes that were announced")
        left -= content.write(frame.payload)
        if not left:
            kind, sequence, channel, whole = first.kind, first.sequence, first.channel, content
            # Nothing here may hold the message while it is worked on, nor after that.
            del data, frame, content
            first, content = None, io.BytesIO()
            yield Whole(kind, sequence, channel, whole.getvalue())
    if first is not None:
        raise FrameError("the stream ended inside a message")


def control(kind: Kind, **content: str | int) -> bytes:
    """Return the one frame of a handshake."""
    (frame,) = encode(kind, 0, json.dumps(content).encode())
    return frame


def text(kind: Kind, sequence: int, reason: str) -> bytes:
    """Return the one frame that says why: an `ERROR` or a `BYE`."""
    (frame,) = encode(kind, sequence, one_line(reason).encode()[:MAX_CONTROL_BYTES])
    return frame


def read_control(frame: Frame, kind: Kind, fields: dict[str, type]) -> dict[str, str | int]:
    """Return a handshake's content; `FrameError` unless it has exactly these fields of these types."""
    if frame.kind is not kind:
        raise FrameError(f"{frame.kind.name} where {kind.name} belongs")
    try:
        content = json.loads(bytes(frame.payload))
    except (ValueError, RecursionError):
        raise FrameError(f"{kind.name} is not JSON") from None
    if not isinstance(content, dict) or {k: type(v) for k, v in content.items()} != fields:
        raise FrameError(f"{kind.name} must have the fields {', '.join(fields)}")
    return content
