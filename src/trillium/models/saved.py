"""The trained parameters in a folder: what PEFT's users load, and all that Trillium needs to go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from safetensors.torch import load_model as load_model_file
from torch import nn

# PEFT saves the embeddings that a prompt encoder yields, not the network that yields them.
_ENCODER = "prompt_encoder.safetensors"


def write_trained(module: nn.Module, folder: Path) -> None:
    """Write a module's adapter (PEFT format), or the whole of a plain model, into a folder."""
    module.save_pretrained(folder)  # type: ignore[operator]
    encoder = _reparametrised(module)
    if encoder is not None:
        tensors = {name: tensor.contiguous() for name, tensor in encoder.state_dict().items()}
        save_file(tensors, folder / _ENCODER)


def read_trained(module: nn.Module, folder: Path) -> None:
    """Copy what `write_trained` wrote into a module's parameters.

    Raises:
        OSError, ValueError, RuntimeError, KeyError: the folder holds none, or of another model.
    """
    if not isinstance(module, PeftModel):
        load_model_file(module, folder / "model.safetensors")
        return
    weights: dict[str, Any] = load_peft_weights(str(folder), device="cpu")
    encoder = _reparametrised(module)
    if encoder is not None:
        tensors = load_file(folder / _ENCODER)
        weights["prompt_embeddings"] = tensors["embedding.weight"]
        encoder.load_state_dict(tensors)
    set_peft_model_state_dict(module, weights)


def _reparametrised(module: nn.Module) -> nn.Module | None:
    """Return the prompt encoder of a module, if it is a network and not mere embeddings."""
    if not isinstance(module, PeftModel) or not module.active_peft_config.is_prompt_learning:
        return None
    encoder = module.prompt_encoder[module.active_adapter]
    assert isinstance(encoder, nn.Module)
    return (
        encoder
        if {name for name, _ in encoder.named_parameters()} != {"embedding.weight"}
        else None
    )
