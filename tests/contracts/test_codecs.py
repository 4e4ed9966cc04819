"""What every codec promises: shapes, bounded error, no NaN, equal bytes, refusal of nonsense."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trillium.codecs import Codec
from trillium.component import known
from trillium.message import Message, MessageError, decode, encode
from trillium.wire import Wire

CODECS = cast(dict[str, type[Codec]], known(Codec))
# Largest error of an entry, relative to the largest entry of its row. A codec that is not listed
# must at least be nearer to the tensor than zero is.
RELATIVE_ERROR = {"cast": 2.0**-8, "int8": 1 / 254}
SHAPES: list[tuple[int, ...]] = [
    (),
    (1,),
    (0,),
    (7,),
    (5, 3),
    (0, 4),
    (4, 0),
    (2, 3, 4),
    (2, 1, 3, 5),
]
NAME = "parameters/x"


def values(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)


def wire(name: str, **options: Any) -> Wire:
    return Wire.model_validate({"up": [{"name": name, **options}]})


def send(tensor: Tensor, over: Wire) -> Tensor:
    message = Message("train", {NAME: tensor})
    return over.unpack(over.pack(message, "up").data, "up").message.tensors[NAME]


def test_all_shipped_codecs_are_registered() -> None:
    assert {"cast", "int8"} <= set(CODECS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", CODECS)
def test_round_trip(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensor = values(shape, dtype)
    before = tensor.clone()
    found = send(tensor, wire(name))
    assert torch.equal(tensor, before), "the tensor that was sent was written to"
    assert found.dtype == torch.float32
    assert found.shape == tensor.shape
    assert bool(torch.isfinite(found).all())
    error = (found.double() - tensor.double()).abs()
    if name in RELATIVE_ERROR and tensor.numel():
        row = tensor.double().abs()
        largest = row.amax(-1, keepdim=True) if row.dim() else row
        assert bool((error <= RELATIVE_ERROR[name] * largest + 1e-7).all())
    else:
        assert float(error.norm()) <= float(tensor.double().norm()) + 1e-6


@pytest.mark.parametrize("name", CODECS)
@settings(max_examples=30, deadline=None)
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


@pytest.mark.parametrize("name", CODECS)
def test_equal_tensors_give_equal_bytes(name: str) -> None:
    message = Message("train", {NAME: values((9, 5))})
    first, second = (wire(name).pack(message, "up").data for _ in range(2))
    assert first == second
    # A layout in memory is no difference: this one is stored column by column.
    turned = Message("train", {NAME: values((9, 5)).T.contiguous().T})
    assert wire(name).pack(turned, "up").data == first


@pytest.mark.parametrize("name", CODECS)
def test_large_tensors_do_not_grow(name: str) -> None:
    packed = wire(name).pack(Message("train", {NAME: values((64, 100))}), "up")
    assert packed.kinds["parameters"] <= packed.bytes_raw
    assert len(packed.data) == sum(packed.kinds.values())


@pytest.mark.parametrize("name", CODECS)
def test_only_its_kinds_and_its_direction_are_encoded(name: str) -> None:
    tensors = {NAME: values((4, 6)), "control/x": values((4, 6)), "labels/x": torch.arange(3)}
    over = wire(name, kinds=["gradients"])
    assert over.pack(Message("train", tensors), "up").data == encode(Message("train", tensors))
    assert wire(name).pack(Message("train", tensors), "down").data == encode(
        Message("train", tensors)
    )


@pytest.mark.parametrize("name", CODECS)
def test_integers_cannot_be_encoded(name: str) -> None:
    with pytest.raises(MessageError, match="needs floats"):
        wire(name).pack(Message("train", {NAME: torch.arange(3)}), "up")


def test_codecs_stack_and_unstack() -> None:
    tensor = values((6, 5))
    stack = Wire.model_validate({"up": ["cast", "int8"]})
    assert torch.allclose(send(tensor, stack), tensor, atol=0.03)
    with pytest.raises(MessageError, match="needs floats"):
        Wire.model_validate({"up": ["int8", "cast"]}).pack(Message("train", {NAME: tensor}), "up")


def nonsense(tensor: Tensor) -> list[Tensor]:
    """What could stand in a part's place."""
    wrong = [torch.zeros(3, 3, 3), torch.zeros(0), torch.ones((), dtype=torch.bool)]
    wrong += [tensor.to(dtype) for dtype in (torch.float64, torch.int64, torch.uint8)]
    if tensor.dim():
        wrong += [tensor[None], tensor.flatten()[:1]]
    return wrong


@pytest.mark.parametrize("name", CODECS)
def test_nonsense_is_refused_or_decoded_never_a_crash(name: str) -> None:
    over = wire(name)
    tensors = dict(decode(over.pack(Message("train", {NAME: values((4, 6))}), "up").data).tensors)
    refused = 0
    for part in tensors:
        changes: list[dict[str, Tensor]] = [{part: tensor} for tensor in nonsense(tensors[part])]
        changes += [{f"{NAME}#7.scale": torch.zeros(1)}, {f"{NAME}#0.zzz": torch.zeros(1)}]
        cases = [{**tensors, **change} for change in changes]
        cases.append({other: t for other, t in tensors.items() if other != part})
        for case in cases:
            if not case:
                continue
            try:
                over.unpack(encode(Message("train", case)), "up")
            except MessageError:
                refused += 1
    assert refused
