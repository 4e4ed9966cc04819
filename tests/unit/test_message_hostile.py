"""Bytes from a hostile peer are refused with `MessageError`, whatever they are."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
import torch

from trillium.wire.kinds import Limits, MessageError
from trillium.wire.message import MAGIC, VERSION, Message, decode, encode, scalar

VALID = encode(
    Message(
        "train",
        {
            "parameters/w": torch.arange(6.0).reshape(2, 3),
            "control/weight": scalar(3.0),
            "labels/y": torch.zeros(0, dtype=torch.int32),
        },
        {"round": 1},
    )
)


def refused_or_read(data: bytes) -> bool:
    """Whether the bytes are refused; any other exception than `MessageError` fails the test."""
    try:
        found = decode(data)
    except MessageError:
        return True
    assert isinstance(found, Message)
    assert isinstance(found.meta, dict)
    return False


def test_random_bytes_are_refused() -> None:
    draw = random.Random(0)
    for _ in range(500):
        assert refused_or_read(draw.randbytes(draw.randrange(200)))
        # Past the magic number, more of the reader is reached.
        length = draw.randrange(60).to_bytes(8, "little")
        tail = draw.randbytes(draw.randrange(200))
        assert refused_or_read(MAGIC + bytes([VERSION]) + length + tail)


def test_every_truncation_and_extension_is_refused() -> None:
    assert all(refused_or_read(VALID[:end]) for end in range(len(VALID)))
    assert refused_or_read(VALID + b"\x00")


def test_flipped_bits_never_crash_the_reader() -> None:
    refused = 0
    for place in range(len(VALID)):
        for bit in range(8):
            flipped = bytearray(VALID)
            flipped[place] ^= 1 << bit
            refused += refused_or_read(bytes(flipped))
    assert refused > 8 * len(MAGIC)
    assert not refused_or_read(VALID)


def forged(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if length is None else length
    return MAGIC + bytes([VERSION]) + size.to_bytes(8, "little") + text + data


ENVELOPE = {"m": json.dumps(["train", {}])}


def entry(dtype: str = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


FORGED = {
    "another version": MAGIC + bytes([VERSION + 1]) + VALID[4:],
    "header longer than the message": forged({}, length=2**40),
    "header of 2^64 - 1 bytes": forged({}, length=2**64 - 1),
    "no metadata": forged({}),
    "metadata that is no JSON": forged({"__metadata__": {"m": "["}}),
    "metadata that is a number": forged({"__metadata__": 3}),
    "metadata that is no pair": forged({"__metadata__": {"m": "[1, 2, 3]"}}),
    "verb that is a number": forged({"__metadata__": {"m": "[1, {}]"}}),
    "verb with a path": forged({"__metadata__": {"m": '["../x", {}]'}}),
    "meta that is a list": forged({"__metadata__": {"m": '["train", []]'}}),
    "header that is a list": forged([1, 2]),
    "header nested too deep": forged(b"[" * 100_000),
    "metadata nested too deep": forged(
        {"__metadata__": {"m": '["train", {"a": ' + "[" * 100_000 + "]" * 100_000 + "}]"}}
    ),
    "header that is no text": forged(b"\xff\xfe{}"),
    "unknown kind": forged({"__metadata__": ENVELOPE, "weights/x": entry()}, bytes(4)),
    "name without a kind": forged({"__metadata__": ENVELOPE, "x": entry()}, bytes(4)),
    "long name": forged({"__metadata__": ENVELOPE, "control/" + "x" * 501: entry()}, bytes(4)),
    "unknown dtype": forged({"__metadata__": ENVELOPE, "control/x": entry("F8")}, bytes(4)),
    "dtype that is a list": forged(
        {"__metadata__": ENVELOPE, "control/x": {**entry(), "dtype": []}}, bytes(4)
    ),
    "entry that is a number": forged({"__metadata__": ENVELOPE, "control/x": 3}, bytes(4)),
    "entry that is a list": forged({"__metadata__": ENVELOPE, "control/x": [1]}, bytes(4)),
    "entry that is nothing": forged({"__metadata__": ENVELOPE, "control/x": None}, bytes(4)),
    "negative size": forged(
        {"__metadata__": ENVELOPE, "control/x": entry(shape=[-1])}, bytes(4)
    ),
    "size that is true": forged({"__metadata__": ENVELOPE, "control/x": entry(shape=[True])}, bytes(4)),
    "size that is a fraction": forged(
        {"__metadata__": ENVELOPE, "control/x": entry(shape=[1.0])}, bytes(4)
    ),
    "shape that is text": forged(
        {"__metadata__": ENVELOPE, "control/x": {**entry(), "shape": "1"}}, bytes(4)
    ),
    "more bytes than there are": forged(
        {"__metadata__": ENVELOPE, "control/x": entry(shape=[10**6], offsets=[0, 4 * 10**6])}
    ),
    "product that overflows": forged(
        {"__metadata__": ENVELOPE, "control/x": entry(shape=[2**40, 2**40], offsets=[0, 0])}
    ),
    "nine dimensions": forged(
        {"__metadata__": ENVELOPE, "control/x": entry(shape=[1] * 9)}, bytes(4)
    ),
    "overlapping tensors": forged(
        {"__metadata__": ENVELOPE, "control/x": entry(), "control/y": entry()}, bytes(4)
    ),
    "a hole in the data": forged(
        {"__metadata__": ENVELOPE, "control/x": entry(offsets=(4, 8))}, bytes(8)
    ),
    "three offsets": forged(
        {"__metadata__": ENVELOPE, "control/x": entry(offsets=(0, 4, 8))}, bytes(4)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGED)
def test_forged_messages_are_refused(name: str) -> None:
    with pytest.raises(MessageError):
        decode(FORGED[name])


def test_the_forgery_itself_is_well_made() -> None:
    found = decode(forged({"__metadata__": ENVELOPE, "control/x": entry()}, bytes(4)))
    assert torch.equal(found.tensors["control/x"], torch.zeros(1))


def test_limits_are_kept() -> None:
    for limits, why in [
        (Limits(max_bytes=len(VALID) - 1), "bytes, at most"),
        (Limits(max_header_bytes=10), "header claims"),
        (Limits(max_tensors=2), "3 tensors, at most 2"),
        (Limits(max_dims=1), "malformed shape"),
    ]:
        with pytest.raises(MessageError, match=why):
            decode(VALID, limits)
    exact = Limits(max_bytes=len(VALID), max_tensors=3, max_dims=2)
    assert decode(VALID, exact).verb == "train"
