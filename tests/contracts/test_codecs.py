"""What every codec promises: shapes, bounded error, no NaN, equal bytes, refusal of nonsense."""

from __future__ import annotations

import random
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trillium.component import known, resolve
from trillium.wire.codecs import Codec
from trillium.wire.codecs.rows import RowCodec
from trillium.wire.kinds import MessageError
from trillium.wire.message import Message, decode, encode
from trillium.wire.wire import Wire

# Codecs of rows, for soft labels, are in test_row_codecs.py.
CODECS = {
    name: codec
    for name, codec in cast(dict[str, type[Codec]], known(Codec)).items()
    if not issubclass(codec, RowCodec)
}
DEFAULTS = {name: resolve(Codec, name) for name in CODECS}
SHAPES: list[tuple[int, ...]] = [
    (),
    (1,),
    (0,),
    (7,),
    (1000,),
    (5, 3),
    (0, 4),
    (4, 0),
    (33, 130),
    (2, 3, 4),
    (2, 1, 3, 5),
]
NAME = "parameters/x"
each_codec = pytest.mark.parametrize("name", CODECS)


def values(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)


def awkward() -> dict[str, Tensor]:
    """Tensors that a scale, a sum or a square root may stumble over."""
    one = torch.zeros(300)
    one[123] = 5.0
    tail = values((40, 50)).exp().square()
    spread = values((600,)) * torch.logspace(-38, 38, 600)
    return {
        "a single entry": one,
        "equal": torch.full((20, 30), 0.1),
        "heavy tail": tail,
        "all magnitudes": spread,
        "largest": torch.full((70, 80), torch.finfo(torch.float32).max),
        "smallest": torch.full((300,), 1e-44),
        "negative": -values((300,)).abs(),
    }


def wire(name: str, **options: Any) -> Wire:
    return Wire.model_validate({"up": [{"name": name, **options}]})


def send(tensor: Tensor, over: Wire) -> Tensor:
    message = Message("train", {NAME: tensor})
    return over.unpack(over.pack(message, "up").data, "up").message.tensors[NAME]


def test_all_shipped_codecs_are_registered() -> None:
    assert set(CODECS) >= {
        "cast", "int8", "int4", "int2", "sign", "top_k", "random_k",
        "hadamard", "zstd", "adaptive",
    }  # fmt: skip
    # The error of none exceeds the tensor by default, so that error feedback does not diverge.
    assert not any(codec.expands for codec in DEFAULTS.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@each_codec
def test_round_trip(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensor = values(shape, dtype)
    before = tensor.clone()
    found = send(tensor, wire(name))
    assert torch.equal(tensor, before), "the tensor that was sent was written to"
    assert found.shape == tensor.shape
    assert bool(torch.isfinite(found).all())
    if DEFAULTS[name].lossless:
        assert found.dtype == dtype
        assert torch.equal(found, tensor)
        return
    assert found.dtype == torch.float32
    error = (found.double() - tensor.double()).norm()
    assert float(error) <= float(tensor.double().norm()) + 1e-6


@each_codec
def test_what_is_lost_is_never_more_than_there_was(name: str) -> None:
    for case, tensor in awkward().items():
        found = send(tensor, wire(name)).double()
        assert bool(torch.isfinite(found).all()), case
        error = float((found - tensor.double()).norm())
        assert error <= float(tensor.double().norm()) * (1 + 1e-6), case


@each_codec
@settings(max_examples=25, deadline=None)
@given(
    entries=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=24),
    columns=st.integers(1, 4),
)
def test_any_finite_floats_come_back_finite(name: str, entries: list[float], columns: int) -> None:
    rows = len(entries) // columns
    tensor = torch.tensor(entries[: rows * columns], dtype=torch.float32).reshape(rows, columns)
    found = send(tensor, wire(name))
    assert found.shape == tensor.shape
    assert bool(torch.isfinite(found).all())
    zeros = send(torch.zeros_like(tensor), wire(name))
    assert float(zeros.abs().sum()) == 0.0


@each_codec
def test_equal_tensors_give_equal_bytes(name: str) -> None:
    message = Message("train", {NAME: values((90, 50))})
    first, second = (wire(name).pack(message, "up").data for _ in range(2))
    assert first == second
    # A layout in memory is no difference: this one is stored column by column.
    turned = Message("train", {NAME: values((90, 50)).T.contiguous().T})
    assert wire(name).pack(turned, "up").data == first
    learnt = Message("train", {NAME: values((90, 50)).requires_grad_()})
    assert wire(name).pack(learnt, "up").data == first


@each_codec
def test_a_preview_is_what_the_other_side_reads(name: str) -> None:
    over = wire(name)
    tensors = {f"parameters/{i}": values((9, 7 + i)) for i in range(3)}
    like = {str(i): values((9, 7 + i)) for i in range(3)}
    message = Message("train", tensors, {"round": 3})
    previewed = over.preview(message, "up")
    seen = previewed.seen.expect("parameters", like)
    sent = over.unpack(over.pack(message, "up").data, "up").message.expect("parameters", like)
    assert all(torch.equal(seen[key], sent[key]) for key in like)


@each_codec
def test_only_the_sender_needs_to_know_the_link(name: str) -> None:
    message = Message("train", {NAME: values((33, 65))})
    for speed in (None, 1.0, 1e9):
        data = wire(name).fit(up=speed, down=None).pack(message, "up").data
        assert wire(name).unpack(data, "up").message.tensors[NAME].shape == (33, 65)


@each_codec
def test_large_tensors_do_not_grow(name: str) -> None:
    packed = wire(name).pack(Message("train", {NAME: values((64, 100))}), "up")
    # Adaptive tells the step, zstd dtype and shape of what shrank.
    assert packed.kinds["parameters"] <= packed.bytes_raw
    assert len(packed.data) == sum(packed.kinds.values())


@each_codec
def test_only_its_kinds_and_its_direction_are_encoded(name: str) -> None:
    tensors = {NAME: values((4, 6)), "control/x": values((4, 6)), "labels/x": torch.arange(3)}
    over = wire(name, kinds=["gradients"])
    assert over.pack(Message("train", tensors), "up").data == encode(Message("train", tensors))
    assert wire(name).pack(Message("train", tensors), "down").data == encode(
        Message("train", tensors)
    )


@each_codec
def test_by_default_only_a_lossless_codec_touches_statistics_and_snapshots(name: str) -> None:
    codec = DEFAULTS[name]
    assert codec.lossless or not {"statistics", "snapshot", "labels", "public"} & set(codec.kinds)
    assert "control" not in codec.kinds


@each_codec
def test_only_a_codec_for_any_dtype_takes_integers(name: str) -> None:
    message = Message("train", {NAME: torch.arange(3000)})
    if DEFAULTS[name].any_dtype:
        assert torch.equal(send(message.tensors[NAME], wire(name)), torch.arange(3000))
    else:
        with pytest.raises(MessageError, match="needs floats"):
            wire(name).pack(message, "up")


def test_codecs_stack_and_unstack() -> None:
    tensor = values((6, 5))
    stack = Wire.model_validate({"up": ["cast", "int8"]})
    assert torch.allclose(send(tensor, stack), tensor, atol=0.03)
    with pytest.raises(MessageError, match="needs floats"):
        Wire.model_validate({"up": ["int8", "cast"]}).pack(Message("train", {NAME: tensor}), "up")


# Parts from a hostile peer


def parts_of(name: str, tensor: Tensor) -> dict[str, Tensor]:
    return dict(decode(wire(name).pack(Message("train", {NAME: tensor}), "up").data).tensors)


def refuses(over: Wire, parts: dict[str, Tensor]) -> bool:
    """Whether the parts are refused; any other exception than `MessageError` fails the test."""
    try:
        dict(over.unpack(encode(Message("train", parts)), "up").message.tensors)
    except MessageError:
        return True
    return False


def nonsense(tensor: Tensor) -> list[Tensor]:
    """What could stand in a part's place."""
    wrong = [torch.zeros(3, 3, 3), torch.zeros(0), torch.ones((), dtype=torch.bool)]
    wrong += [torch.full_like(tensor, 3), -torch.ones_like(tensor)]
    for dtype in (torch.float64, torch.int64, torch.uint8, torch.bfloat16):
        wrong += [tensor.to(dtype), torch.ones((), dtype=dtype), torch.zeros(0, dtype=dtype)]
    if tensor.dim():
        wrong += [tensor[None], tensor.flatten()[:1], tensor[:-1], torch.cat([tensor, tensor])]
    return wrong


@each_codec
def test_nonsense_is_refused_or_decoded_never_a_crash(name: str) -> None:
    over = wire(name)
    tensors = parts_of(name, values((16, 25)))
    refused = 0
    for part in tensors:
        changes: list[dict[str, Tensor]] = [{part: tensor} for tensor in nonsense(tensors[part])]
        changes += [{f"{NAME}#7.scale": torch.zeros(1)}, {f"{NAME}#0.zzz": torch.zeros(1)}]
        cases = [{**tensors, **change} for change in changes]
        cases.append({other: t for other, t in tensors.items() if other != part})
        refused += sum(refuses(over, case) for case in cases if case)
    assert refused


@each_codec
def test_random_bytes_in_a_part_never_crash(name: str) -> None:
    over = wire(name)
    tensors = parts_of(name, values((16, 25)).round(decimals=1))
    draw = random.Random(0)
    for part, tensor in tensors.items():
        for _ in range(60):
            raw = bytearray(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
            for _ in range(draw.choice((1, 3, len(raw)))):
                raw[draw.randrange(len(raw))] = draw.randrange(256)
            changed = torch.frombuffer(raw, dtype=tensor.dtype).reshape(tensor.shape)
            refuses(over, {**tensors, part: changed})


@each_codec
def test_a_claimed_size_is_checked_before_it_is_allocated(name: str) -> None:
    over = wire(name)
    tensors = parts_of(name, values((16, 25)).round())
    for part, tensor in tensors.items():
        if part == NAME or tensor.dtype != torch.int64:
            continue
        for size in (2**31, 2**40, 2**62, -1, -(2**62)):
            claimed = tensor.clone()
            claimed[-1] = size
            assert refuses(over, {**tensors, part: claimed}), (part, size)
        assert refuses(over, {**tensors, part: torch.ones(9, dtype=torch.int64)})
