"""The wire: codecs by direction and kind, and what each kind weighs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from trillium.wire.codecs.random_k import RandomK
from trillium.wire.kinds import Kind, Limits, MessageError
from trillium.wire.message import Message, decode, encode, named
from trillium.wire.wire import Direction, Wire

DIRECTIONS: tuple[Direction, ...] = ("up", "down")

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


def wire(up: list[Any] | None = None, down: list[Any] | None = None) -> Wire:
    return Wire.model_validate({"up": up or [], "down": down or []})


def test_without_codecs_the_bytes_are_the_message() -> None:
    for direction in DIRECTIONS:
        packed = Wire().pack(MESSAGE, direction)
        assert packed.data == encode(MESSAGE)
        assert packed.bytes_raw == 6 * 5 * 4 + 3 * 2 * 4 + 4 * 4 + 8


def test_kinds_add_up_to_the_bytes() -> None:
    packed = wire(up=["int8"]).pack(MESSAGE, "up")
    header = len(packed.data) - (30 + 6 * 2) - (6 + 3 * 2) - 16 - 8
    assert packed.kinds == {"parameters": 42, "logits": 12, "labels": 16, "control": 8 + header}
    assert list(packed.kinds) == sorted(packed.kinds)
    assert wire(up=["int8"]).unpack(packed.data, "up").kinds == packed.kinds


def test_each_direction_has_its_own_codecs() -> None:
    both = wire(up=["cast"], down=["int8"])
    assert decode(both.pack(MESSAGE, "up").data).tensors["parameters/w"].dtype == torch.bfloat16
    assert decode(both.pack(MESSAGE, "down").data).tensors["parameters/w"].dtype == torch.int8
    with pytest.raises(MessageError, match=r"parameters/w|logits/z"):
        dict(both.unpack(both.pack(MESSAGE, "down").data, "up").message.tensors)


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
            dict(receiver.unpack(data, "up").message.tensors)
    lone = encode(Message("train", {"parameters/w#scale": torch.ones(1)}))
    with pytest.raises(MessageError, match="does not fit"):
        dict(Wire().unpack(lone, "up").message.tensors)


def test_limits_reach_the_reader() -> None:
    with pytest.raises(MessageError, match="at most 10"):
        Wire().unpack(encode(MESSAGE), "up", Limits(max_bytes=10))


def test_the_wire_reads_back_and_refuses_strangers() -> None:
    coded = wire(up=["cast", "int8"], down=[{"name": "int8", "kinds": ["logits"]}])
    assert Wire.model_validate(coded.model_dump(mode="json")) == coded
    with pytest.raises(ValidationError):
        Wire.model_validate({"sideways": []})


# Many tensors of a kind cross as one


def adapter(seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    shapes = {"b": (3, 4), "a": (2,), "c": (), "d": (0, 5), "e": (4, 2, 3)}
    return {name: torch.randn(shape, generator=draw).to(dtype) for name, shape in shapes.items()}


@pytest.mark.parametrize("kind", ["parameters", "gradients", "statistics", "snapshot"])
def test_the_flat_form_is_read_like_the_named_one(kind: Kind) -> None:
    tensors = adapter()
    message = Message("train", {**named(kind, tensors), "control/x": torch.ones(2)})
    packed = Wire().pack(message, "up")
    crossed = decode(packed.data)
    assert set(crossed.tensors) == {f"{kind}/flat", "control/x"}
    by_name = torch.cat([tensors[name].flatten() for name in sorted(tensors)])
    assert torch.equal(crossed.tensors[f"{kind}/flat"], by_name)
    found = Wire().unpack(packed.data, "up").message.expect(kind, tensors)
    assert list(found) == list(tensors)
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert all(found[name].shape == tensors[name].shape for name in tensors)
    # What it weighs is what the tensors weigh, and each is a copy of its own.
    assert packed.bytes_raw == sum(tensor.nbytes for tensor in tensors.values()) + 8
    found["b"].zero_()
    assert torch.equal(found["e"], tensors["e"])


def test_what_does_not_belong_together_keeps_its_names() -> None:
    mixed = {**adapter(), "f": torch.ones(2, dtype=torch.float64)}
    integers = {name: tensor.int() for name, tensor in adapter().items()}
    for tensors in (
        named("activations", adapter()),
        named("logits", adapter()),
        named("parameters", mixed),
        named("parameters", integers),
        {"parameters/one": torch.ones(3)},
    ):
        message = Message("train", tensors)
        assert Wire().pack(message, "down").data == encode(message)


def test_a_tensor_called_flat_beside_others_is_a_mistake() -> None:
    message = Message("train", named("parameters", {"flat": torch.ones(2), "b": torch.ones(2)}))
    with pytest.raises(AssertionError, match="parameters/flat"):
        Wire().pack(message, "up")


def test_what_was_previewed_is_not_encoded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[int] = []
    real = RandomK.encode

    def encode_once(self: RandomK, tensor: Tensor, key: int) -> dict[str, Tensor]:
        encoded.append(key)
        return real(self, tensor, key)

    monkeypatch.setattr(RandomK, "encode", encode_once)
    over, tensors = wire(up=["random_k"]), {"a": torch.randn(300), "b": torch.randn(5, 7)}
    message = Message("train", named("parameters", tensors), {"round": 2})
    previewed = over.preview(message, "up")
    more = {**message.tensors, "control/cost": torch.ones(4)}
    once = over.pack(replace(previewed.message, tensors=more), "up")
    assert len(encoded) == 1
    assert once.data == over.pack(replace(message, tensors=more), "up").data
    read = over.unpack(once.data, "up").message.expect("parameters", tensors)
    seen = previewed.seen.expect("parameters", tensors)
    assert all(torch.equal(seen[name], read[name]) for name in tensors)
    # What a message of another round is made of is drawn anew.
    assert over.pack(replace(message, meta={"round": 3}), "up").data != once.data


# What both sides know


def test_a_round_of_the_metadata_seeds_what_is_drawn() -> None:
    over = wire(up=[{"name": "random_k", "fraction": 0.1}])
    ones = {"parameters/x": torch.ones(400)}

    def kept(verb: str, meta: dict[str, Any]) -> list[int]:
        found = over.preview(Message(verb, ones, meta), "up").seen.tensors["parameters/x"]
        return [int(place) for place in found.nonzero()[:, 0]]

    assert len(kept("train", {"round": 1})) == 40
    assert kept("train", {"round": 1}) == kept("train", {"round": 1, "client": "b"})
    different = [
        kept("train", {"round": 1}), kept("train", {"round": 2}), kept("tune", {"round": 1}),
    ]  # fmt: skip
    assert len({tuple(places) for places in different}) == 3
    # Without a round, or with something else in its place, both sides take zero.
    none = kept("train", {"round": 0})
    assert (
        none == kept("train", {}) == kept("train", {"round": "1"}) == kept("train", {"round": True})
    )


def test_lossless_is_told_by_kind_and_direction() -> None:
    over = wire(up=[{"name": "int8", "kinds": ["parameters"]}, "zstd"], down=["zstd"])
    assert not over.is_lossless("parameters", "up")
    assert over.is_lossless("gradients", "up")
    assert over.is_lossless("parameters", "down")
    assert Wire().is_lossless("parameters", "up")


def test_the_links_are_fitted_by_direction() -> None:
    adaptive = {"name": "adaptive", "steps": ["cast", "sign"], "seconds": 1.0}
    over = wire(up=[adaptive], down=[adaptive, "zstd"])
    message = Message("train", {"parameters/x": torch.randn(1000)})
    fitted = over.fit(up=8 * 2001, down=8 * 2000)
    steps = {
        direction: int(decode(fitted.pack(message, direction).data).tensors["parameters/x#0.step"])
        for direction in DIRECTIONS
    }
    assert steps == {"up": 0, "down": 1}
    for direction in DIRECTIONS:
        data = fitted.pack(message, direction).data
        assert over.unpack(data, direction).message.tensors["parameters/x"].shape == (1000,)
    assert over.fit(None, None) == over


def test_what_tensors_decode_to_is_limited_like_a_message() -> None:
    over = wire(up=["zstd"])
    tensors = {f"logits/{name}": torch.zeros(100_000) for name in "abc"}
    data = over.pack(Message("train", tensors), "up").data
    assert len(data) < 2000
    dict(over.unpack(data, "up", Limits(max_bytes=1_200_000)).message.tensors)
    with pytest.raises(MessageError, match="hold more bytes than"):
        dict(over.unpack(data, "up", Limits(max_bytes=1_199_999)).message.tensors)
