"""Which layers of a task head train, and what becomes of those that do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from checkpoints import checkpoint, fresh, load, logits, moved
from trillium.models.heads import head_modules

INNER = {
    "roberta": "classifier.dense",
    "electra": "classifier.dense",
    "distilbert": "pre_classifier",
}
LAST = {
    "roberta": "classifier.out_proj",
    "electra": "classifier.out_proj",
    "distilbert": "classifier",
}
LORA = {"name": "lora", "target_modules": "all-linear"}
each_model = pytest.mark.parametrize("model", INNER)


def head_of(tensors: Any, model: str) -> dict[str, torch.Tensor]:
    """Return the tensors of the head that counts, by their names in the plain model."""
    found = {}
    for name, tensor in tensors.items():
        plain = name.removeprefix("base_model.model.").replace("modules_to_save.default.", "")
        if "lora_" not in plain and "original" not in plain and "classifier" in plain:
            found[plain] = tensor
    return found


def both(name: str) -> set[str]:
    return {f"{name}.weight", f"{name}.bias"}


@each_model
def test_only_the_last_layer_trains(hub: Path, model: str) -> None:
    folder = checkpoint(hub, model, "SEQ_CLS")
    assert set(head_modules(fresh(folder, "SEQ_CLS"))) <= {"classifier", "pre_classifier"}
    linear = load(folder, "SEQ_CLS", LORA)
    assert head_of(linear.initial, model).keys() == both(LAST[model])
    own = load(folder, "SEQ_CLS", LORA, head="own")
    assert head_of(own.initial, model).keys() == both(LAST[model]) | both(INNER[model])
    assert not any("lora_" in name and "classifier" in name for name in own.initial)


@each_model
def test_layers_that_no_checkpoint_holds_become_the_identity(hub: Path, model: str) -> None:
    folder = checkpoint(hub, model, "SEQ_CLS")
    for options in ({}, {"random_weights": True}):
        head = head_of(load(folder, "SEQ_CLS", LORA, **options).module.state_dict(), model)
        assert torch.equal(head[f"{INNER[model]}.weight"], torch.eye(12))
        assert not head[f"{INNER[model]}.bias"].any()
        assert not torch.equal(head[f"{LAST[model]}.weight"], torch.eye(3, 12))
    drawn = head_of(load(folder, "SEQ_CLS", LORA, head="own").initial, model)
    assert not torch.equal(drawn[f"{INNER[model]}.weight"], torch.eye(12))


@each_model
def test_layers_of_the_checkpoint_stay(hub: Path, model: str) -> None:
    folder = checkpoint(hub, model, "SEQ_CLS", with_head=True)
    wanted = load_file(folder / "model.safetensors")
    found = head_of(load(folder, "SEQ_CLS", LORA).module.state_dict(), model)
    assert all(torch.equal(found[name], wanted[name]) for name in both(INNER[model]))


@pytest.mark.parametrize("head", ["linear", "own"])
@each_model
def test_the_saved_adapter_holds_the_frozen_layers(
    hub: Path, tmp_path: Path, model: str, head: str
) -> None:
    folder = checkpoint(hub, model, "SEQ_CLS")
    found = load(folder, "SEQ_CLS", LORA, head=head)
    state = moved(found)
    expected = logits(found.mount(state))
    found.save(state, tmp_path / "saved")

    def loaded() -> torch.Tensor:
        return logits(PeftModel.from_pretrained(fresh(folder, "SEQ_CLS"), tmp_path / "saved"))

    torch.testing.assert_close(loaded(), expected, rtol=0, atol=1e-6)
    file = tmp_path / "saved" / "adapter_model.safetensors"
    tensors = load_file(file)
    (inner,) = [name for name in tensors if name.endswith(f"{INNER[model]}.weight")]
    tensors[inner] *= 3  # it is read, not assumed
    save_file(tensors, file, metadata={"format": "pt"})
    assert (loaded() - expected).abs().max() > 1e-3


def test_a_pooler_that_no_checkpoint_holds_is_saved(hub: Path, tmp_path: Path) -> None:
    folder = checkpoint(hub, "bert", "SEQ_CLS")
    assert not any("pooler" in name for name in load_file(folder / "model.safetensors"))
    found = load(folder, "SEQ_CLS", "lora")
    assert not any("pooler" in name for name in found.initial)
    found.save(found.state(), tmp_path / "saved")
    tensors = load_file(tmp_path / "saved" / "adapter_model.safetensors")
    assert torch.equal(tensors["base_model.model.bert.pooler.dense.weight"], torch.eye(12))
    complete = checkpoint(hub, "bert", "SEQ_CLS", with_head=True)
    load(complete, "SEQ_CLS", "lora").save(found.state(), tmp_path / "lean")
    lean = load_file(tmp_path / "lean" / "adapter_model.safetensors")
    assert not any("pooler" in name for name in lean)


def test_full_fine_tuning_trains_every_layer(hub: Path) -> None:
    found = load(checkpoint(hub, "roberta", "SEQ_CLS"), "SEQ_CLS", "full")
    assert found.initial.keys() == {name for name, _ in found.module.named_parameters()}
    assert not torch.equal(found.initial["classifier.dense.weight"], torch.eye(12))
