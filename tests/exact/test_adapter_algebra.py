"""Adapters against arithmetic that is not ours: merged weights, heads on features, DoRA's curvature."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from checkpoints import INPUTS, checkpoint, load, logits, moved
from tiny import TARGETS
from trillium.errors import UserError
from trillium.models.factors import Factors, lora_factors, nonlinear_names
from trillium.models.heads import features, head_layer

MODELS = ["bert", "gpt2", "llama"]


def lora(model: str, **options: Any) -> dict[str, Any]:
    targets = TARGETS[model].strip("[]").split(", ")
    return {"name": "lora", "r": 3, "alpha": 5, "target_modules": targets, **options}


def merged(module: nn.Module, factors: tuple[Factors, ...]) -> nn.Module:
    """Return a copy with each change added to its base weight, and no change left beside it."""
    result = copy.deepcopy(module)
    with torch.no_grad():
        for layer in factors:
            b = result.get_parameter(layer.b)
            change = layer.scale * b @ result.get_parameter(layer.a)
            result.get_parameter(layer.layer).add_(change.T if layer.transposed else change)
            b.zero_()
    return result


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("model", MODELS)
def test_factors_merged_give_the_logits_of_the_adapter(hub: Path, model: str, rslora: bool) -> None:
    folder = checkpoint(hub, model, "SEQ_CLS")
    options = lora(model, rslora=rslora)
    found = load(folder, "SEQ_CLS", options, dtype="float64")
    module = found.mount(moved(found))
    factors = lora_factors(module)
    assert [f.layer for f in factors] == sorted(f.layer for f in factors)
    assert {n for f in factors for n in (f.a, f.b)} == {n for n in found.initial if "lora_" in n}
    assert {f.scale for f in factors} == {5 / 3**0.5 if rslora else 5 / 3}
    assert all(f.transposed == (model == "gpt2") for f in factors)
    assert any(len(set(module.get_parameter(f.layer).shape)) == 2 for f in factors)
    expected = logits(module)
    torch.testing.assert_close(logits(merged(module, factors)), expected, rtol=0, atol=1e-6)
    for wrong in (0.0, 1.0):  # the scale left out, and no merge at all
        others = tuple(Factors(f.layer, f.a, f.b, wrong, f.transposed) for f in factors)
        assert (logits(merged(module, others)) - expected).abs().max() > 1e-2


def test_factors_of_embeddings_merge_too(hub: Path) -> None:
    folder = checkpoint(hub, "bert", "SEQ_CLS")
    options = {"name": "lora", "r": 3, "target_modules": ["word_embeddings"]}
    found = load(folder, "SEQ_CLS", options, dtype="float64")
    module = found.mount(moved(found))
    (factors,) = lora_factors(module)
    assert factors.transposed
    expected = logits(module)
    assert (logits(merged(module, ())) - expected).abs().max() == 0
    torch.testing.assert_close(logits(merged(module, (factors,))), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["ia3", "prompt", "bottleneck", "bitfit", "full"])
def test_other_adapters_have_no_factors(hub: Path, name: str) -> None:
    found = load(checkpoint(hub, "bert", "SEQ_CLS"), "SEQ_CLS", name)
    assert lora_factors(found.module) == ()
    assert nonlinear_names(found.module) == set()


@pytest.mark.parametrize("dora", [False, True])
def test_only_dora_is_not_linear_in_b(hub: Path, dora: bool) -> None:
    """With A and the norms held, the mean of the clients' B is the mean of their layers, or not."""
    folder = checkpoint(hub, "bert", "SEQ_CLS")
    found = load(folder, "SEQ_CLS", lora("bert", dora=dora), dtype="float64")
    first = lora_factors(found.module)[0]
    owner = found.module.get_submodule(first.layer.removesuffix(".base_layer.weight"))
    x = torch.randn(4, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    state = moved(found)

    def output(b: Tensor) -> Tensor:
        found.mount({**state, first.b: nn.Parameter(b)})
        with torch.no_grad():
            result: Tensor = owner(x)
        return result

    one, two = (moved(found, seed)[first.b].data * 5 for seed in (1, 2))
    gap = (output((one + two) / 2) - (output(one) + output(two)) / 2).abs().max()
    assert (gap > 1e-3) if dora else (gap < 1e-12)
    named = nonlinear_names(found.module)
    assert named == ({n for n in found.initial if "lora_" in n} if dora else set())
    assert not dora or any("magnitude" in name for name in named)


def test_orthonormal_rows_come_from_the_seed(hub: Path) -> None:
    folder = checkpoint(hub, "gpt2", "SEQ_CLS")
    one, same, other = (
        load(folder, "SEQ_CLS", lora("gpt2", init="orthonormal"), dtype="float64", seed=seed)
        for seed in (1, 1, 2)
    )
    plain = load(folder, "SEQ_CLS", lora("gpt2"), dtype="float64", seed=1)
    for layer in lora_factors(one.module):
        a = one.initial[layer.a]
        torch.testing.assert_close(a @ a.T, torch.eye(3, dtype=a.dtype), rtol=0, atol=1e-12)
        assert torch.equal(a, same.initial[layer.a])
        assert not torch.allclose(a, other.initial[layer.a])
        assert not one.initial[layer.b].any()
        drawn = plain.initial[layer.a]
        assert (drawn @ drawn.T - torch.eye(3)).abs().max() > 0.1


@pytest.mark.parametrize("adapter", ["lora", "full"])
@pytest.mark.parametrize("model", [*MODELS, "roberta", "distilbert", "electra"])
def test_logits_are_the_head_on_the_features(hub: Path, model: str, adapter: str) -> None:
    options: Any = adapter
    if adapter == "lora" and model in ("distilbert", "electra"):
        options = {"name": "lora", "target_modules": "all-linear"}
    found = load(checkpoint(hub, model, "SEQ_CLS"), "SEQ_CLS", options)
    module = found.mount(moved(found))
    expected = logits(module)
    weights = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    name, layer = head_layer(module)
    assert f"{name}.weight" in found.initial
    with features(module):
        seen = logits(module)
    assert seen.shape == (2, layer.in_features)
    assert torch.equal(layer(seen), expected)
    assert torch.equal(logits(module), expected)
    with pytest.raises(ZeroDivisionError), features(module):
        raise ZeroDivisionError
    assert module.get_submodule(name) is layer
    now = module.state_dict()
    assert now.keys() == weights.keys()
    assert all(torch.equal(now[name], weights[name]) for name in now)


def test_a_language_model_has_no_head_to_solve(hub: Path) -> None:
    found = load(checkpoint(hub, "gpt2", "CAUSAL_LM"), "CAUSAL_LM", "lora")
    with pytest.raises(UserError, match="no linear layer"), features(found.module):
        found.module(**INPUTS)
