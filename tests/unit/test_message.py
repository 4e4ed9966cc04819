"""Messages: equal ones give equal bytes, and a receiver gets what was agreed or an error."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trillium.wire.kinds import DTYPES, KINDS, MessageError
from trillium.wire.message import Message, decode, encode, named, scalar

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


# What a receiver asks for

LIKE = {"a": torch.zeros(2, 3), "b": torch.zeros(4, dtype=torch.float64)}


def reply(**changes: Tensor) -> Message:
    found = {"a": torch.ones(2, 3), "b": torch.ones(4)} | changes
    return Message("train", named("parameters", found))


def test_expect_returns_what_was_agreed() -> None:
    found = reply().expect("parameters", LIKE)
    assert list(found) == ["a", "b"]
    assert found["b"].dtype == torch.float64
    assert (
        reply(a=torch.ones(2, 3).bfloat16()).expect("parameters", LIKE)["a"].dtype == torch.float32
    )


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


def test_numbers_are_held_to_their_sign() -> None:
    told = Message("train", {"control/x": torch.tensor([1.0, -2.0]), "control/y": scalar(-0.5)})
    assert told.tensor("control/x", torch.float32, (2,)).tolist() == [1, -2]
    with pytest.raises(MessageError, match="control/x holds -2, below zero"):
        told.tensor("control/x", torch.float32, (2,), signed=False)
    for read in (told.not_negative, told.positive):
        with pytest.raises(MessageError, match=r"control/y .*-0.5, (below|not above) zero"):
            read("control/y")


def test_expect_reads_the_flat_form() -> None:
    flat = Message("train", {"parameters/flat": torch.arange(10.0)})
    found = flat.expect("parameters", LIKE)
    assert list(found) == ["a", "b"]
    assert torch.equal(found["a"], torch.arange(6.0).reshape(2, 3))
    assert torch.equal(found["b"], torch.arange(6, 10, dtype=torch.float64))
    half = Message("train", {"parameters/flat": torch.arange(10).bfloat16()})
    assert torch.equal(half.expect("parameters", LIKE)["a"], found["a"])
    empty = Message("train", {"parameters/flat": torch.zeros(0)}).expect("parameters", {})
    assert empty == {}


@pytest.mark.parametrize(
    ("flat", "why"),
    [
        (torch.zeros(9), "expected 10 floats"),
        (torch.zeros(11), "expected 10 floats"),
        (torch.zeros(1, 10), "expected 10 floats"),
        (torch.zeros(()), "expected 10 floats"),
        (torch.zeros(10, dtype=torch.int64), "expected 10 floats"),
        (torch.tensor([0.0] * 9 + [float("nan")]), "b holds NaN"),
        (torch.tensor([float("inf")] + [0.0] * 9), "a holds NaN or infinity"),
    ],
)
def test_expect_refuses_a_wrong_flat_form(flat: Tensor, why: str) -> None:
    with pytest.raises(MessageError, match=why):
        Message("train", {"parameters/flat": flat}).expect("parameters", LIKE)


def test_the_flat_form_stands_alone() -> None:
    both = Message("train", {"parameters/flat": torch.zeros(10), "parameters/a": torch.zeros(2, 3)})
    with pytest.raises(MessageError, match="lack"):
        both.expect("parameters", LIKE)
    with pytest.raises(MessageError, match="float32, expected"):
        Message("train", {"parameters/flat": torch.zeros(3)}).expect(
            "parameters", {"a": torch.zeros(3, dtype=torch.int64)}
        )
    with pytest.raises(AssertionError, match="parameters/flat"):
        both.expect("parameters", {"flat": torch.zeros(10)})


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
