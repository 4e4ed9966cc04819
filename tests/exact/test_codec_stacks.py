"""Codecs together: stacks, choices among them, and headers that do not dominate."""

from __future__ import annotations

import pytest
import torch
from codec_help import NAME, bytes_of, codec, normal, relative, send, wire
from torch import Tensor

from trillium.wire.kinds import Limits, MessageError
from trillium.wire.message import Message, decode, encode, named
from trillium.wire.wire import Wire

# Stacks


def test_a_rotation_spreads_outliers() -> None:
    tensor = normal(20, 512)
    tensor[:, ::50] *= 40
    for name in ("int4", "int2", "sign"):
        plain = relative(send(tensor, wire(name)), tensor)
        rotated = relative(send(tensor, wire("hadamard", name)), tensor)
        assert rotated < 0.8 * plain, (name, rotated, plain)


def test_stacks_lose_and_weigh_what_their_parts_do() -> None:
    tensor = normal(6000)
    sparse = {"name": "top_k", "fraction": 0.05}
    alone, both = send(tensor, wire(sparse)), wire(sparse, "int4")
    found = send(tensor, both)
    assert torch.equal(found != 0, alone != 0)
    assert relative(found, alone) < 0.15
    weight = both.pack(Message("train", {NAME: tensor}), "up").kinds["parameters"]
    assert weight == bytes_of(sparse, tensor) - 4 * 300 + 150 + 2 * 5
    for stack in (
        ["hadamard", "int4"],
        ["hadamard", "sign"],
        ["cast", "zstd"],
    ):
        assert relative(send(tensor.reshape(60, 100), wire(*stack)), tensor.reshape(60, 100)) < 1
    assert torch.equal(send(tensor, wire("int4", "zstd")), send(tensor, wire("int4")))
    assert torch.equal(send(tensor, wire(sparse, "int4", "zstd")), found)


def test_a_lossless_codec_shrinks_what_can_be_shrunk() -> None:
    smooth = torch.linspace(1, 2, 4000)
    assert bytes_of("zstd", smooth) < 0.8 * smooth.nbytes
    for tensor in (smooth, torch.arange(3000), smooth > 1.5, torch.ones(999).bfloat16()):
        found = send(tensor, wire("zstd"))
        assert found.dtype == tensor.dtype
        assert torch.equal(found, tensor)
    scattered = torch.randint(0, 256, (5000,), generator=torch.Generator().manual_seed(0))
    assert bytes_of("zstd", scattered.to(torch.uint8)) == 5000
    sparse = torch.where(torch.rand(8000) < 0.9, 0.0, normal(8000))
    assert (
        bytes_of("int4", sparse)
        > wire("int4", "zstd").pack(Message("train", {NAME: sparse}), "up").kinds["parameters"]
    )


def test_compressed_bytes_that_stand_for_more_are_refused() -> None:
    data = wire("zstd").pack(Message("train", {NAME: torch.zeros(10**6)}), "up").data
    parts = dict(decode(data).tensors)
    form = f"{NAME}#0.form"
    assert len(data) < 1000
    for claim in (
        [1, 10**6 - 1],
        [1, 1],
        [1, Limits().max_bytes],
        [0, 10**6],
        [99, 10**6],
        [1, -1],
    ):
        changed = {**parts, form: torch.tensor(claim)}
        with pytest.raises(MessageError, match="does not fit"):
            dict(wire("zstd").unpack(encode(Message("train", changed)), "up").message.tensors)
    # A frame that claims 32 TiB in its own header, which the library would allocate.
    frame = bytes.fromhex("28b52ffde0") + (2**45).to_bytes(8, "little") + bytes([3, 0, 0, 0])
    bomb = {**parts, NAME: torch.frombuffer(bytearray(frame), dtype=torch.uint8)}
    with pytest.raises(MessageError, match="are not 4000000 bytes"):
        dict(wire("zstd").unpack(encode(Message("train", bomb)), "up").message.tensors)
    twice = {**parts, NAME: parts[NAME].repeat(2)}
    with pytest.raises(MessageError, match="does not fit"):
        dict(wire("zstd").unpack(encode(Message("train", twice)), "up").message.tensors)


def test_adaptive_takes_the_first_step_that_fits() -> None:
    tensor = normal(6400)
    weights = {"cast": 12800, "int8": 6600, "int4": 3400, "int2": 1800}
    names = list(weights)
    for number, weight in enumerate(weights.values()):
        for budget, step in ((weight + 1, number), (weight, min(number + 1, 3))):
            over = wire({"name": "adaptive", "max_bytes": budget})
            parts = decode(over.pack(Message("train", {NAME: tensor}), "up").data).tensors
            assert int(parts[f"{NAME}#0.step"]) == step
            # The other side knows the steps, not the budget.
            found = wire("adaptive").unpack(encode(Message("train", parts)), "up").message
            assert torch.equal(found.tensors[NAME], send(tensor, wire(names[step])))


def test_adaptive_knows_its_link_and_its_steps() -> None:
    timed = codec("adaptive", seconds=2.0, max_bytes=10_000)
    assert timed.fit(8_000.0).to_config()["max_bytes"] == 2000
    assert timed.fit(8e9).to_config()["max_bytes"] == 10_000
    assert timed.fit(None) == timed
    stacks = codec("adaptive", steps=["zstd", ["hadamard", "int4"], ["top_k", "int4"]], max_bytes=1)
    tensor = normal(100, 10)
    over = Wire(up=(stacks,))
    assert torch.equal(send(tensor, over), send(tensor, wire("top_k", "int4")))
    assert "values" not in stacks.suits
    assert not stacks.lossless
    assert codec("adaptive", steps=["zstd"]).lossless
    assert codec("adaptive", steps=["cast", {"name": "int2", "rounding": "stochastic"}]).expands


# Headers


def lora_tensors() -> dict[str, Tensor]:
    names = [
        f"base_model.model.encoder.layer.{layer}.attention.self.{module}.lora_{factor}.weight"
        for layer in range(25)
        for module in ("query", "value")
        for factor in "AB"
    ]
    return {name: normal(4, 32, seed=seed) for seed, name in enumerate(names)}


@pytest.mark.parametrize("stack", [[], ["int4"], ["sign"], ["top_k", "int4"], ["int4", "zstd"]])
def test_the_header_of_a_hundred_tensors_is_small(stack: list[str]) -> None:
    tensors = lora_tensors()
    assert len(tensors) == 100
    message = Message("train", named("parameters", tensors), {"round": 7})
    over = wire(*stack)
    packed = over.pack(message, "up")
    assert packed.kinds["control"] < 500
    assert packed.bytes_raw == 100 * 4 * 32 * 4
    found = over.unpack(packed.data, "up").message.expect("parameters", tensors)
    flat = torch.cat([tensors[name].flatten() for name in sorted(tensors)])
    alone = send(flat, wire(*stack)) if "top_k" not in stack else None
    if alone is not None:
        assert torch.equal(torch.cat([found[name].flatten() for name in sorted(found)]), alone)
    # The same message with its names, each tensor apart.
    assert len(encode(message)) - packed.bytes_raw > 10_000
