"""What a weighted mean must and must not change; merged LoRA = LoRA beside its weight."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tiny import EXACT, TARGETS, federation, perturb, plain_batch, plain_model
from trillium.aggregators import Contribution
from trillium.aggregators.mean import Mean
from trillium.models.slots import Tensors

SHAPES = {"up": (20, 12), "down": (12, 20), "key": (6, 12), "bias": (20,), "scale": ()}


def contribution(index: int, weight: float, dtype: torch.dtype = torch.float64) -> Contribution:
    draw = torch.Generator().manual_seed(index)
    tensors = {n: torch.randn(s, generator=draw, dtype=dtype) for n, s in SHAPES.items()}
    return Contribution(f"client-{index}", weight, tensors)


def close(left: Tensors, right: Tensors, atol: float = 1e-15) -> bool:
    assert left.keys() == right.keys() == SHAPES.keys()
    return all(torch.allclose(left[n], right[n], atol=atol, rtol=0) for n in left)


CLIENTS = [contribution(index, weight) for index, weight in enumerate((3.0, 1.0, 7.0))]
MEAN = Mean().aggregate(CLIENTS)


def test_it_is_the_weighted_mean() -> None:
    for name in SHAPES:
        by_hand = torch.stack([c.weight * c.tensors[name] for c in CLIENTS]).sum(0) / 11.0
        assert torch.allclose(MEAN[name], by_hand, atol=1e-15, rtol=0)
    equal = Mean().aggregate([Contribution(c.client, 1.0, c.tensors) for c in CLIENTS])
    assert not close(equal, MEAN, atol=1e-2)


def test_the_order_of_clients_does_not_matter() -> None:
    assert close(Mean().aggregate(CLIENTS[::-1]), MEAN)


def test_a_client_may_be_split_in_two() -> None:
    halves = [Contribution(f"half-{w}", w, CLIENTS[2].tensors) for w in (2.0, 5.0)]
    assert close(Mean().aggregate([*CLIENTS[:2], *halves]), MEAN)
    uneven = [Contribution(f"half-{w}", w, CLIENTS[2].tensors) for w in (2.0, 9.0)]
    assert not close(Mean().aggregate([*CLIENTS[:2], *uneven]), MEAN, atol=1e-2)


def test_a_client_of_no_weight_changes_nothing() -> None:
    assert close(Mean().aggregate([*CLIENTS, contribution(9, 1e-300)]), MEAN)
    assert not close(Mean().aggregate([*CLIENTS, contribution(9, 1.0)]), MEAN, atol=1e-2)


def test_one_client_and_identical_clients_give_that_model() -> None:
    only = CLIENTS[0]
    assert close(Mean().aggregate([only]), only.tensors, atol=0.0)
    same = [Contribution(str(i), w, only.tensors) for i, w in enumerate((0.1, 0.2, 0.7))]
    assert close(Mean().aggregate(same), only.tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_tensors_are_summed_in_float64(dtype: torch.dtype) -> None:
    clients = [contribution(index, 1.0 + index, dtype) for index in range(50)]
    found = Mean().aggregate(clients)
    total = sum(client.weight for client in clients)
    naive_differs = False
    for name, tensor in found.items():
        assert tensor.dtype == dtype
        wide = sum(c.weight / total * c.tensors[name].double() for c in clients)
        assert isinstance(wide, Tensor)
        assert torch.equal(tensor, wide.to(dtype))
        naive: Any = sum(c.weight / total * c.tensors[name] for c in clients)
        naive_differs |= not torch.equal(naive, tensor)
    assert naive_differs


def adapted_layers(module: nn.Module) -> list[Any]:
    return [layer for layer in module.modules() if hasattr(layer, "lora_A")]


def merged(module: nn.Module, *, scale: bool = True, transpose: bool = True) -> nn.Module:
    """Fold every adapter into its weight by hand: `W + alpha / r * B @ A`."""
    module = copy.deepcopy(module)
    for layer in adapted_layers(module):
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        change = b @ a * (5 / 3 if scale else 1.0)
        weight = layer.base_layer.weight
        is_conv = type(layer.base_layer).__name__ == "Conv1D"  # GPT-2 stores (in, out)
        if is_conv and transpose:
            change = change.T
        with torch.no_grad():
            weight += change.reshape(weight.shape)
            b.zero_()
    return module


@pytest.mark.parametrize("model", TARGETS)
def test_merged_lora_gives_the_logits_of_the_adapter(hub: Path, model: str) -> None:
    fed = perturb(federation(hub, model=model))
    plain = plain_model(fed).eval()
    inputs, _ = plain_batch(fed.clients[0].examples)

    def logits(module: nn.Module) -> Tensor:
        with torch.no_grad():
            found: Tensor = module(**inputs).logits
        return found

    adapted = logits(plain)
    assert torch.allclose(logits(merged(plain)), adapted, atol=EXACT[model])
    assert not torch.allclose(logits(merged(plain, scale=False)), adapted, atol=1e-3)
    if model == "gpt2":
        assert not torch.allclose(logits(merged(plain, transpose=False)), adapted, atol=1e-3)
    shapes = {tuple(layer.base_layer.weight.shape) for layer in adapted_layers(plain)}
    assert any(rows != columns for rows, columns in shapes)
    library = copy.deepcopy(plain).merge_and_unload()  # type: ignore[operator]
    assert torch.allclose(logits(library), adapted, atol=EXACT[model])
