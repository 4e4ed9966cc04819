"""Frames: what is sent comes together again, and whatever else arrives is refused cheaply."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trillium.engines.frames import (
    HEADER,
    MAX_CHUNK_BYTES,
    Frame,
    FrameError,
    Kind,
    Whole,
    control,
    encode,
    messages,
    parse,
    read_control,
    text,
)
from trillium.errors import one_line

MAX = 1_000_000


def anything(first: Frame) -> None:
    pass


def together(*frames: bytes, max_bytes: int = MAX) -> list[Whole]:
    return list(messages(frames, max_bytes, anything))


@given(st.lists(st.binary(max_size=200), max_size=4), st.integers(1, 50))
def test_messages_come_together_again(contents: list[bytes], chunk_bytes: int) -> None:
    frames = [
        frame
        for number, data in enumerate(contents)
        for frame in encode(Kind.ASK, number, data, "message", chunk_bytes)
    ]
    assert together(*frames) == [
        Whole(Kind.ASK, number, "message", data) for number, data in enumerate(contents)
    ]


def test_no_chunk_is_larger_than_asked_for_and_none_is_made_in_advance() -> None:
    frames = encode(Kind.REPLY, 7, bytes(1000), chunk_bytes=300)
    assert [len(parse(frame).payload) for frame in frames] == [300, 300, 300, 100]
    assert isinstance(frames, Iterator)


@settings(max_examples=300)
@given(st.binary(max_size=60))
@example(HEADER.pack(Kind.ASK, 0, 2**64 - 1, 255))
@example(HEADER.pack(Kind.ASK, 0, 2**64 - 1, 0) + b"x")
def test_random_bytes_are_a_frame_or_an_error(data: bytes) -> None:
    try:
        frame = parse(data)
    except FrameError:
        return
    assert frame.kind in Kind
    assert len(frame.payload) <= frame.total_bytes


_numbers = st.one_of(st.integers(0, 20), st.sampled_from([2**32, 2**64 - 1]))
_frames = st.builds(
    lambda kind, sequence, total, named, rest: HEADER.pack(kind, sequence, total, named) + rest,
    st.integers(0, 9),
    st.integers(0, 1),
    _numbers,
    st.integers(0, 3),
    st.binary(max_size=20),
)


@settings(max_examples=300)
@given(st.lists(_frames, max_size=6))
def test_streams_of_odd_frames_end_in_messages_or_an_error(frames: list[bytes]) -> None:
    found: list[Whole] = []
    try:
        for whole in messages(frames, MAX, anything):
            found.append(whole)
    except FrameError:
        pass
    assert sum(len(whole.data) for whole in found) <= sum(map(len, frames))


@given(st.binary(max_size=100))
def test_random_handshakes_are_refused(data: bytes) -> None:
    (frame,) = encode(Kind.HELLO, 0, data)
    with pytest.raises(FrameError):
        read_control(parse(frame), Kind.HELLO, {"version": int, "name": str, "token": str})


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (b"", "a frame of 0 bytes"),
        (HEADER.pack(99, 0, 0, 0), "unknown kind 99"),
        (HEADER.pack(Kind.ASK, 0, 0, 65) + bytes(65), "channel name of 65 bytes"),
        (HEADER.pack(Kind.ASK, 0, 0, 5) + b"x", "channel name of 5 bytes"),
        (HEADER.pack(Kind.ASK, 0, 0, 1) + b"\xff", "not ASCII"),
        (HEADER.pack(Kind.ASK, 0, 3, 0) + b"four", "a chunk of 4 bytes of a message of 3"),
        (HEADER.pack(Kind.MORE, 0, 3, 0), "an empty chunk"),
        (HEADER.pack(Kind.HELLO, 0, 5000, 0) + bytes(5000), "HELLO of 5000 bytes, at most 4096"),
        (HEADER.pack(Kind.ERROR, 0, 5, 0) + b"abc", "ERROR in more than one frame"),
        (
            HEADER.pack(Kind.ASK, 0, 2**40, 0) + bytes(MAX_CHUNK_BYTES + 1),
            f"a chunk of {MAX_CHUNK_BYTES + 1} bytes",
        ),
    ],
)
def test_malformed_frames(frame: bytes, reason: str) -> None:
    with pytest.raises(FrameError, match=reason):
        parse(frame)


def _first(total: int, payload: bytes) -> bytes:
    return HEADER.pack(Kind.REPLY, 1, total, 0) + payload


def _more(payload: bytes, sequence: int = 1) -> bytes:
    return HEADER.pack(Kind.MORE, sequence, 2**63, 0) + payload


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([_more(b"x")], "not begun"),
        ([_first(MAX + 1, b"x")], "REPLY of 1000001 bytes, at most 1000000"),
        ([_first(3, b"ab"), _more(b"cd")], "more than the 3 bytes that were announced"),
        ([_first(3, b"ab"), _more(b"c", sequence=2)], "MORE inside a message"),
        ([_first(3, b"ab"), _first(1, b"c")], "REPLY inside a message"),
        ([_first(3, b"ab")], "ended inside a message"),
    ],
)
def test_frames_that_do_not_fit_together(frames: list[bytes], reason: str) -> None:
    with pytest.raises(FrameError, match=reason):
        together(*frames)


def test_memory_is_taken_for_what_arrives_and_not_for_what_is_announced() -> None:
    chunk = bytes(10_000)
    tracemalloc.start()
    try:
        with pytest.raises(FrameError, match="ended"):
            together(_first(4 * 1024**3, chunk), *[_more(chunk)] * 10, max_bytes=2**33)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_one_copy_of_a_message_is_in_memory() -> None:
    size = 8 * 1024**2
    frames = encode(Kind.ASK, 1, bytes(size), chunk_bytes=64 * 1024)
    tracemalloc.start()
    try:
        (whole,) = messages(frames, size, anything)
        # The buffer grows by an eighth at a time; the message sent was there before.
        assert tracemalloc.get_traced_memory()[1] < 1.3 * size
    finally:
        tracemalloc.stop()
    assert whole.data == bytes(size)


def test_a_handshake_has_exactly_its_fields() -> None:
    fields = {"version": int, "name": str}
    good = parse(control(Kind.HELLO, version=1, name="a"))
    assert read_control(good, Kind.HELLO, fields) == {"version": 1, "name": "a"}
    for other in (
        control(Kind.HELLO, version=1),
        control(Kind.HELLO, version="1", name="a"),
        control(Kind.HELLO, version=True, name="a"),
        control(Kind.HELLO, version=1, name="a", more=1),
        control(Kind.WELCOME, version=1, name="a"),
    ):
        with pytest.raises(FrameError):
            read_control(parse(other), Kind.HELLO, fields)


def test_reasons_from_outside_are_one_printable_line() -> None:
    assert one_line("no\nsuch\x1b[31m  batch\u202e") == "no such [31m batch"
    assert len(one_line("x" * 5000)) == 1000
    frame = parse(text(Kind.ERROR, 3, "\U0001f33e" * 5000))
    assert frame.total_bytes <= 4096
