"""Wrap a model by PEFT: the adapter and the task head train, the rest is frozen."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from peft import LoraModel, PeftConfig, get_peft_model
from peft.utils import ModulesToSaveWrapper
from peft.utils.constants import DUMMY_TARGET_MODULES
from torch import Tensor, nn

from trillium.errors import UserError
from trillium.models.blocks import base_model, other_towers
from trillium.models.heads import head_modules
from trillium.models.stand_ins import is_whole

# PEFT itself adds these names for SEQ_CLS and TOKEN_CLS.
_ADDED_BY_PEFT = ("classifier", "score")
HALF = (torch.bfloat16, torch.float16)


def attach(
    model: nn.Module, config: PeftConfig, keep: Sequence[str], train: Sequence[str] = ()
) -> nn.Module:
    """Return the model wrapped by PEFT, with the whole task head trainable beside the adapter.

    What is trained in copies (head, norms) is trained in float32 also beside a base in half
    precision, as PEFT does with the tensors of its adapters: most steps of a small learning rate
    would be rounded away, and so would most clients' updates in a mean. What is to `keep` is saved
    with the adapter, but frozen.
    """
    heads = head_modules(model) if config.task_type != "CAUSAL_LM" else ()
    own = [*(name for name in heads if name not in _ADDED_BY_PEFT), *train, *keep]
    config.modules_to_save = own or None
    adapts = (
        config.target_modules != DUMMY_TARGET_MODULES
        if hasattr(config, "exclude_modules")
        else False
    )
    if adapts and (left_out := _left_out(model, config)):
        config.exclude_modules = "|".join(left_out)
    try:
        wrapped: nn.Module = get_peft_model(model, config)
    except ValueError as error:
        if not is_whole(model) and config.target_modules != DUMMY_TARGET_MODULES:
            config.target_modules = DUMMY_TARGET_MODULES  # it adapts what others hold
            return attach(model, config, keep, train)
        leaves = {name.rsplit(".", 1)[-1]: m for name, m in model.named_modules()}
        linear = sorted(
            name for name, m in leaves.items() if hasattr(m, "weight") and m.weight.dim() == 2
        )
        raise UserError(
            f"adapter {str(config.peft_type).rpartition('.')[-1].lower()} on "
            f"{type(model).__name__}",
            f"PEFT finds nothing to adapt ({error})",
            f"Name some of its layers as target_modules: {', '.join(linear)}; lora also takes "
            "target_modules=all-linear",
        ) from error
    for name, wrapper in base_model(wrapped).named_modules():
        if isinstance(wrapper, ModulesToSaveWrapper):
            for module in wrapper.modules_to_save.values():
                module.requires_grad_(name not in keep)
                _widen(module, cast_back=name not in heads)
    return wrapped


def _left_out(model: nn.Module, config: PeftConfig) -> list[str]:
    """Return patterns of modules that get no adapter: other towers, and what PEFT cannot adapt.

    The projections around Mamba's recurrence are such: their weights are read past the adapter, by
    fused kernels or always.
    """
    found = [f"{re.escape(name)}\\..*|{re.escape(name)}" for name in other_towers(model)]
    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    if any(hasattr(m, "A_log") and hasattr(m, "dt_proj") for m in model.modules()):
        found.append(r"(.*\.)?dt_proj")
    for name in sorted(names):
        try:
            LoraModel._check_target_module_compatiblity(None, config, model, name)
        except ValueError:
            found.append(f"(.*\\.)?{re.escape(name)}")
    return found


def _widen(module: nn.Module, *, cast_back: bool) -> None:
    """Make a module in half precision compute in float32, and answer as before where asked to."""
    dtypes = {parameter.dtype for parameter in module.parameters()}
    if not dtypes.intersection(HALF):
        return
    module.float().register_forward_pre_hook(_to_float32)
    if cast_back:
        dtype = torch.bfloat16 if torch.bfloat16 in dtypes else torch.float16
        module.register_forward_hook(partial(_narrow, dtype=dtype))


def _to_float32(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x.float() if isinstance(x, Tensor) else x for x in inputs)


def _narrow(module: nn.Module, inputs: object, output: Tensor, dtype: torch.dtype) -> Tensor:
    return output.to(dtype)
