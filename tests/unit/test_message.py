"""Messages: equal ones give equal bytes, hostile ones are refused and never crash the reader."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trillium.message import (
    DTYPES,
    KINDS,
    MAGIC,
    VERSION,
    Limits,
    Message,
    MessageError,
    decode,
    encode,
    named,
    scalar,
)

NAMES = st.builds(
    "{}/{}".format, st.sampled_from(KINDS), st.text("abcXYZ019_./-", min_size=1, max_size=12)
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    dtype = draw(st.sampled_from(list(DTYPES.values())))
    shape = draw(st.lists(st.integers(0, 3), max_size=4))
    seed = draw(st.integers(0, 2**31))
    values = torch.randint(-100, 100, shape, generator=torch.Generator().manual_seed(seed))
    return values.to(dtype)


MESSAGES = st.builds(
    Message,
    st.from_regex(r"[a-z][a-z0-9_]{0,10}", fullmatch=True),
    st.dictionaries(NAMES, tensors(), max_size=4),
    st.dictionaries(st.text(max_size=6), JSON, max_size=3),
)


def same(left: Tensor, right: Tensor) -> bool:
    return left.dtype == right.dtype and left.shape == right.shape and torch.equal(left, right)


@settings(max_examples=150, deadline=None)
@given(MESSAGES)
def test_round_trip(message: Message) -> None:
    found = decode(encode(message))
    assert found.verb == message.verb
    assert found.meta == message.meta
    assert found.tensors.keys() == message.tensors.keys()
    assert all(same(found.tensors[name], t) for name, t in message.tensors.items())


@settings(max_examples=80, deadline=None)
@given(MESSAGES, st.randoms(use_true_random=False))
def test_equal_messages_give_equal_bytes(message: Message, order: random.Random) -> None:
    def shuffled(content: Any) -> dict[str, Any]:
        items = list(content.items())
        order.shuffle(items)
        return dict(items)

    twin = Message(message.verb, shuffled(message.tensors), shuffled(message.meta))
    assert encode(twin) == encode(message)
    assert encode(decode(encode(message))) == encode(message)


def test_memory_layout_and_gradients_leave_no_trace() -> None:
    table = torch.arange(12.0).reshape(3, 4)
    turned = table.T.contiguous().T.requires_grad_()
    plain, other = (encode(Message("train", {"parameters/a": t})) for t in (table, turned))
    assert plain == other


def test_the_size_does_not_depend_on_the_values() -> None:
    sizes = {len(encode(Message("a", {"control/w": scalar(x)}))) for x in (0, 1e-300, 1 / 3, 7)}
    assert len(sizes) == 1


def test_special_floats_keep_their_bits() -> None:
    values = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45])
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        sent = values.to(dtype)
        found = decode(encode(Message("a", {"parameters/x": sent}))).tensors["parameters/x"]
        assert torch.equal(found.view(torch.uint8), sent.view(torch.uint8))


# Hostile bytes

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


# What a receiver asks for

LIKE = {"a": torch.zeros(2, 3), "b": torch.zeros(4, dtype=torch.float64)}


def reply(**changes: Tensor) -> Message:
    found = {"a": torch.ones(2, 3), "b": torch.ones(4)} | changes
    return Message("train", named("parameters", found))


def test_expect_returns_what_was_agreed() -> None:
    found = reply().expect("parameters", LIKE)
    assert list(found) == ["a", "b"]
    assert found["b"].dtype == torch.float64
    assert reply(a=torch.ones(2, 3).bfloat16()).expect("parameters", LIKE)["a"].dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"c": torch.zeros(1)}, r"unknown \['c'\]"),
        ({"a": torch.zeros(3, 2)}, r"\(3, 2\), expected \(2, 3\)"),
        ({"a": torch.zeros(6)}, "expected"),
        ({"a": torch.zeros(2, 3, dtype=torch.int64)}, "int64, expected"),
        ({"a": torch.full((2, 3), float("nan"))}, "NaN or infinity"),
        ({"b": torch.full((4,), -float("inf"))}, "NaN or infinity"),
    ],
)
def test_expect_refuses_what_was_not(changes: dict[str, Tensor], why: str) -> None:
    with pytest.raises(MessageError, match=why):
        reply(**changes).expect("parameters", LIKE)
    with pytest.raises(MessageError, match="lack"):
        Message("train", {"parameters/a": torch.ones(2, 3)}).expect("parameters", LIKE)


def test_single_tensors_and_numbers_are_checked() -> None:
    message = Message(
        "train",
        {
            "control/x": scalar(-2.0),
            "control/nan": scalar(float("nan")),
            "control/half": torch.tensor(1.0),
            "labels/y": torch.zeros(2, 5, dtype=torch.int32),
        },
    )
    assert message.scalar("control/x") == -2.0
    assert message.tensor("labels/y", torch.int32, (None, 5)).shape == (2, 5)
    assert message.floats("control/half", ()).dtype == torch.float32
    for wrong in (
        lambda: message.positive("control/x"),
        lambda: message.scalar("control/nan"),
        lambda: message.scalar("control/half"),
        lambda: message.scalar("control/none"),
        lambda: message.tensor("labels/y", torch.int64, (2, 5)),
        lambda: message.tensor("labels/y", torch.int32, (2, 4)),
        lambda: message.tensor("labels/y", torch.int32, (None,)),
        lambda: message.floats("labels/y", (2, 5)),
        lambda: message.floats("control/none", ()),
    ):
        with pytest.raises(MessageError):
            wrong()


@pytest.mark.parametrize(
    "message",
    [
        Message("Train"),
        Message(""),
        Message("train", {"x": torch.zeros(1)}),
        Message("train", {"weights/x": torch.zeros(1)}),
        Message("train", {"control/x": torch.zeros(1, dtype=torch.complex64)}),
    ],
)
def test_the_sender_is_held_to_the_same_rules(message: Message) -> None:
    with pytest.raises(AssertionError):
        encode(message)
