"""`model.dtype=auto`: weights are of the data type in which they are stored, in runs and in plans."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoints import checkpoint, load
from tiny import experiment_config
from trillium.errors import UserError
from trillium.plan.models import Models


def stored(hub: Path, folder: Path, dtype: torch.dtype) -> Path:
    """Return a copy of a checkpoint in a data type."""
    shutil.copytree(checkpoint(hub, "llama", "CAUSAL_LM"), folder)
    weights = {name: t.to(dtype) for name, t in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    told = json.loads((folder / "config.json").read_text())
    told["dtype"] = str(dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(told))
    return folder


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_auto_is_what_is_stored(hub: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    folder = stored(hub, tmp_path / "model", dtype)
    model = load(folder, "CAUSAL_LM", "lora", dtype="auto")
    assert model.dtype == dtype
    name = "model.layers.1.mlp.down_proj.weight"
    found = model.module.get_parameter(f"base_model.model.{name}")
    assert torch.equal(found, load_file(folder / "model.safetensors")[name])
    assert load(folder, "CAUSAL_LM", "lora").dtype == torch.float32
    words = (f"model.id={folder}", "model.dtype=auto", "model.random_weights=false")
    config = experiment_config(hub, *words, model="llama", task="causal_lm")
    assert Models().get(config, 0, None).dtype == dtype


def test_what_needs_float32_wants_it_written(hub: Path) -> None:
    words = ("model.dtype=auto", "training.autocast=bfloat16")
    with pytest.raises(UserError, match=r"Write model\.dtype=float32"):
        experiment_config(hub, *words)
