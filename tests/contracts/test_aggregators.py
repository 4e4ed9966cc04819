"""What every aggregator promises: names, shapes and dtypes kept, inputs untouched, no order."""

from __future__ import annotations

from typing import cast

import pytest
import torch

from trillium.aggregators import Aggregator, Contribution
from trillium.component import known

AGGREGATORS = cast(dict[str, type[Aggregator]], known(Aggregator))
# Named as PEFT names them, for aggregators that look at the factors of LoRA.
SHAPES = {
    "base_model.model.layers.0.up.lora_A.default.weight": (3, 12),
    "base_model.model.layers.0.up.lora_B.default.weight": (20, 3),
    "base_model.model.score.modules_to_save.default.weight": (5, 12),
    "base_model.model.score.modules_to_save.default.bias": (5,),
}


def contributions(num: int = 7, dtype: torch.dtype = torch.float32) -> list[Contribution]:
    draw = torch.Generator().manual_seed(2)
    return [
        Contribution(
            f"client-{index}",
            1.0 + index,
            {n: torch.randn(s, generator=draw).to(dtype) for n, s in SHAPES.items()},
        )
        for index in range(num)
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", AGGREGATORS)
def test_names_shapes_and_dtypes_stay(name: str, dtype: torch.dtype) -> None:
    clients = contributions(dtype=dtype)
    before = [{n: t.clone() for n, t in client.tensors.items()} for client in clients]
    found = AGGREGATORS[name]().aggregate(clients)
    assert {n: tuple(t.shape) for n, t in found.items()} == SHAPES
    assert all(tensor.dtype == dtype for tensor in found.values())
    assert all(bool(torch.isfinite(tensor).all()) for tensor in found.values())
    for client, old in zip(clients, before, strict=True):
        assert all(torch.equal(client.tensors[n], old[n]) for n in old)


@pytest.mark.parametrize("name", AGGREGATORS)
def test_the_order_of_clients_does_not_matter(name: str) -> None:
    aggregate = AGGREGATORS[name]().aggregate
    forward = aggregate(contributions(dtype=torch.float64))
    backward = aggregate(contributions(dtype=torch.float64)[::-1])
    for key in SHAPES:
        assert torch.allclose(forward[key], backward[key], atol=1e-12)


@pytest.mark.parametrize("name", AGGREGATORS)
def test_equal_clients_give_their_model(name: str) -> None:
    only = contributions(1, torch.float64)[0]
    same = [Contribution(f"client-{i}", 1.0 + i, only.tensors) for i in range(7)]
    found = AGGREGATORS[name]().aggregate(same)
    up, down = (next(n for n in SHAPES if part in n) for part in ("lora_A", "lora_B"))
    product = found[down] @ found[up]  # factors may be rotated, their product may not
    assert torch.allclose(product, only.tensors[down] @ only.tensors[up], atol=1e-12)
    for key in SHAPES:
        if "lora" not in key:
            assert torch.allclose(found[key], only.tensors[key], atol=1e-12)


@pytest.mark.parametrize("name", AGGREGATORS)
def test_the_answer_is_not_the_storage_of_a_client(name: str) -> None:
    clients = contributions(1)
    for key, tensor in AGGREGATORS[name]().aggregate(clients).items():
        assert tensor.data_ptr() != clients[0].tensors[key].data_ptr()
