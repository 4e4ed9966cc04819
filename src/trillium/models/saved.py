"""The trained parameters in a folder: what PEFT's users load, and all that Trillium needs to go on."""

from __future__ import annotations

from pathlib import Path

from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from safetensors.torch import load_model as load_model_file
from torch import nn


def write_trained(module: nn.Module, folder: Path) -> None:
    """Write a module's adapter (PEFT format), or the whole of a plain model, into a folder."""
    module.save_pretrained(folder)  # type: ignore[operator]


def read_trained(module: nn.Module, folder: Path) -> None:
    """Copy what `write_trained` wrote into a module's parameters; raises whatever its readers do."""
    if not isinstance(module, PeftModel):
        load_model_file(module, folder / "model.safetensors")
        return
    set_peft_model_state_dict(module, load_peft_weights(str(folder), device="cpu"))
