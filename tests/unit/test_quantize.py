"""A quantised base: refused with a reason, or trained beside and never written."""

from __future__ import annotations

import importlib.util
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from checkpoints import INPUTS, checkpoint, fresh, load, logits, moved
from trillium.errors import UserError
from trillium.extras import install
from trillium.models.heads import head_layer

PACKAGES = {"nf4": "bitsandbytes", "int8": "torchao"}
each_kind = pytest.mark.parametrize("kind", PACKAGES)
LORA = {"name": "lora", "target_modules": "all-linear"}


@each_kind
def test_a_missing_package_is_named(hub: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=PACKAGES[kind]) as caught:
        load(checkpoint(hub, "llama", "SEQ_CLS"), "SEQ_CLS", LORA, quantize=kind)
    assert caught.value.instead == install("quantization")


@each_kind
def test_random_weights_are_refused(hub: Path, kind: str) -> None:
    with pytest.raises(ValueError, match="random_weights"):
        load(hub / "llama", "SEQ_CLS", LORA, quantize=kind, random_weights=True)


@each_kind
def test_what_cannot_be_done_is_refused(hub: Path, tmp_path: Path, kind: str) -> None:
    pytest.importorskip(PACKAGES[kind])
    folder = checkpoint(hub, "llama", "SEQ_CLS")
    found = load(folder, "SEQ_CLS", LORA, quantize=kind)
    with pytest.raises(UserError, match="quantised"):
        found.save_merged(found.state(), tmp_path / "merged")


def test_int8_refuses_layers_that_it_does_not_know(hub: Path) -> None:
    pytest.importorskip("torchao")
    with pytest.raises(UserError, match="quantises none"):
        load(checkpoint(hub, "gpt2", "SEQ_CLS"), "SEQ_CLS", "lora", quantize="int8")


@pytest.mark.parametrize("task", ["SEQ_CLS", "CAUSAL_LM"])
@pytest.mark.parametrize("model", ["llama", "bert"])
@each_kind
def test_adapters_train_beside_a_quantised_base(
    hub: Path, tmp_path: Path, model: str, kind: str, task: str
) -> None:
    pytest.importorskip(PACKAGES[kind])
    if task == "CAUSAL_LM" and model == "bert":
        pytest.skip("an encoder")
    folder = checkpoint(hub, model, task)
    found = load(folder, task, LORA, quantize=kind, dropout=0.0)
    plain = load(folder, task, LORA, dropout=0.0)
    assert found.is_quantized
    assert not plain.is_quantized
    assert found.initial.keys() == plain.initial.keys()
    assert {tensor.dtype for tensor in found.initial.values()} == {torch.float32}
    assert found.dtype == torch.float32
    state = moved(found)
    module: Any = found.mount(state)
    if task == "SEQ_CLS":
        assert type(head_layer(module)[1]) is torch.nn.Linear
    gap = (logits(module) - logits(plain.mount(state))).abs().max()
    assert 0 < gap < 2, "near the base that it stands for, and not the same"
    found.mount(state).train()
    torch.testing.assert_close(module(**INPUTS).logits, logits(module), rtol=0, atol=1e-6)
    frozen = [p for p in module.parameters() if not p.requires_grad]
    before = [p.detach().clone() for p in frozen]
    module(**INPUTS).logits.square().mean().backward()
    assert all(p.grad is not None for p in state.values())
    torch.optim.SGD(state.values(), lr=0.1).step()
    pairs = zip(before, frozen, strict=True)
    assert all(bool((old == new).all()) for old, new in pairs if type(old) is torch.Tensor)
    expected = logits(module)
    found.save(state, tmp_path / "saved")
    again = found.load_state(tmp_path / "saved")
    assert all(torch.equal(again[name], state[name]) for name in state)
    unquantised = PeftModel.from_pretrained(fresh(folder, task), tmp_path / "saved")
    assert (logits(unquantised) - expected).abs().max() < 2


def test_the_extra_names_both_packages() -> None:
    project = Path(__file__).parents[2] / "pyproject.toml"
    extras = tomllib.loads(project.read_text())["project"]["optional-dependencies"]
    assert {line.partition(">")[0] for line in extras["quantization"]} == set(PACKAGES.values())
