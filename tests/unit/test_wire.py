"""The wire: codecs by direction and kind, and what each kind weighs."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from trillium.message import Limits, Message, MessageError, decode, encode
from trillium.wire import Wire

MESSAGE = Message(
    "train",
    {
        "parameters/w": torch.randn(6, 5, generator=torch.Generator().manual_seed(0)),
        "logits/z": torch.ones(3, 2),
        "labels/y": torch.arange(4, dtype=torch.int32),
        "control/weight": torch.tensor(2.0, dtype=torch.float64),
    },
    {"round": 2},
)


def wire(up: list[object] | None = None, down: list[object] | None = None) -> Wire:
    return Wire.model_validate({"up": up or [], "down": down or []})


def test_without_codecs_the_bytes_are_the_message() -> None:
    for direction in ("up", "down"):
        packed = Wire().pack(MESSAGE, direction)
        assert packed.data == encode(MESSAGE)
        assert packed.bytes_raw == 6 * 5 * 4 + 3 * 2 * 4 + 4 * 4 + 8


def test_kinds_add_up_to_the_bytes() -> None:
    packed = wire(up=["int8"]).pack(MESSAGE, "up")
    header = len(packed.data) - (30 + 6 * 4) - (6 + 3 * 4) - 16 - 8
    assert packed.kinds == {"parameters": 54, "logits": 18, "labels": 16, "control": 8 + header}
    assert list(packed.kinds) == sorted(packed.kinds)
    assert wire(up=["int8"]).unpack(packed.data, "up").kinds == packed.kinds


def test_each_direction_has_its_own_codecs() -> None:
    both = wire(up=["cast"], down=["int8"])
    assert decode(both.pack(MESSAGE, "up").data).tensors["parameters/w"].dtype == torch.bfloat16
    assert decode(both.pack(MESSAGE, "down").data).tensors["parameters/w"].dtype == torch.int8
    with pytest.raises(MessageError, match=r"parameters/w|logits/z"):
        both.unpack(both.pack(MESSAGE, "down").data, "up")


def test_what_a_codec_does_not_know_passes_untouched() -> None:
    coded = wire(up=[{"name": "cast", "kinds": ["parameters"]}])
    found = coded.unpack(coded.pack(MESSAGE, "up").data, "up").message
    assert found.meta == MESSAGE.meta
    for name in ("logits/z", "labels/y", "control/weight"):
        assert torch.equal(found.tensors[name], MESSAGE.tensors[name])
        assert found.tensors[name].dtype == MESSAGE.tensors[name].dtype
    assert not torch.equal(found.tensors["parameters/w"], MESSAGE.tensors["parameters/w"])


def test_codecs_are_undone_in_reverse() -> None:
    stack = wire(up=[{"name": "cast", "dtype": "float16"}, "int8"])
    found = stack.unpack(stack.pack(MESSAGE, "up").data, "up").message
    tensor = MESSAGE.tensors["parameters/w"]
    assert torch.allclose(found.tensors["parameters/w"], tensor, atol=0.02)
    assert set(decode(stack.pack(MESSAGE, "up").data).tensors) == {
        "parameters/w", "parameters/w#1.scale", "logits/z", "logits/z#1.scale",
        "labels/y", "control/weight",
    }  # fmt: skip


def test_parts_that_nobody_sent_for_are_refused() -> None:
    extra = {**MESSAGE.tensors, "parameters/w#1.scale": torch.ones(1)}
    data = encode(Message("train", extra))
    for receiver in (Wire(), wire(up=["cast"])):
        with pytest.raises(MessageError, match=r"no codec of this side knows|does not fit"):
            receiver.unpack(data, "up")
    with pytest.raises(MessageError, match="does not fit"):
        Wire().unpack(encode(Message("train", {"parameters/w#scale": torch.ones(1)})), "up")


def test_limits_reach_the_reader() -> None:
    with pytest.raises(MessageError, match="at most 10"):
        Wire().unpack(encode(MESSAGE), "up", Limits(max_bytes=10))


def test_the_wire_reads_back_and_refuses_strangers() -> None:
    coded = wire(up=["cast", "int8"], down=[{"name": "int8", "kinds": ["logits"]}])
    assert Wire.model_validate(coded.model_dump(mode="json")) == coded
    with pytest.raises(ValidationError):
        Wire.model_validate({"sideways": []})
