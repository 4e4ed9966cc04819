"""A frozen base of 4 or 8 bits per weight, with an adapter in full precision beside it.

QLoRA: Efficient Finetuning of Quantized LLMs (Dettmers et al., 2023, arXiv 2305.14314).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn
from transformers import BitsAndBytesConfig, TorchAoConfig

from trillium.errors import UserError
from trillium.extras import install

Quantize = Literal["none", "nf4", "int8"]
_PACKAGES = {"nf4": "bitsandbytes", "int8": "torchao"}


def quantization(
    kind: Quantize, dtype: torch.dtype, device: torch.device, keep: Sequence[str]
) -> dict[str, Any]:
    """Return what `from_pretrained` must be told to quantise the linear layers of a model on loading.

    `nf4` are 4-bit normal floats in blocks, whose scales are quantised again; `int8` has a scale
    per row. Activations, and what is not quantised, are of `dtype`.

    Raises:
        UserError: the package that does it is not installed.
    """
    if kind == "none":
        return {}
    check_package(kind)
    config: Any
    if kind == "nf4":
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=list(keep),
        )
    else:
        from torchao.quantization import Int8WeightOnlyConfig

        config = TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=list(keep))
    return {"quantization_config": config, "device_map": {"": device}}


def check_package(kind: Quantize) -> None:
    """Refuse to quantise without the package that does it."""
    if kind != "none" and importlib.util.find_spec(_PACKAGES[kind]) is None:
        raise UserError(
            f"model.quantize={kind}",
            f"the package {_PACKAGES[kind]} is not installed",
            install("quantization"),
        )


def check_quantized(model: nn.Module, kind: Quantize) -> None:
    """Make sure that the quantiser has found layers to quantise, and that these stay as they are."""
    if kind != "none" and not any(map(_is_quantized, model.parameters())):
        raise UserError(
            f"model.quantize={kind} on {type(model).__name__}",
            f"{_PACKAGES[kind]} quantises none of its layers",
            "Write model.quantize=nf4" if kind == "int8" else "Write model.quantize=none",
        )
    for layer in model.modules():
        # On some CPUs bitsandbytes repacks weights, and rounds their scales, in the first forward pass
        # in evaluation mode. The base of a federation is shared and must not change under it.
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def _is_quantized(parameter: nn.Parameter) -> bool:
    # torchao's weights are tensors of a class of their own that claims the dtype of the activations.
    return not parameter.is_floating_point() or type(parameter.data) is not torch.Tensor
