"""LoRA: Low-Rank Adaptation of Large Language Models (Hu et al., 2021, arXiv 2106.09685).

A frozen weight `W (out, in)` gets the trainable change `alpha / r * B @ A`, with `A (r, in)` drawn at
random and `B (out, r)` zero at the start.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from peft import LoraConfig, get_peft_model
from peft.utils import ModulesToSaveWrapper
from pydantic import Field
from torch import Tensor, nn

from trillium.adapters import Adapter
from trillium.errors import UserError


class Lora(Adapter, name="lora"):
    """LoRA through `peft`, with the task head trained in full beside it.

    Attributes:
        r: rank of the change.
        alpha: the change is scaled by `alpha / r`.
        dropout: dropout on the input of the adapter while training.
        target_modules: names of the linear layers that get an adapter, `all-linear` for all of them;
            PEFT's choice for the architecture where it is left out.
        layers: indices of the blocks that get an adapter; all blocks where it is left out.
    """

    r: int = Field(default=8, ge=1)
    alpha: float = Field(default=16.0, gt=0)
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    target_modules: tuple[str, ...] | Literal["all-linear"] | None = None
    layers: tuple[int, ...] | None = None

    def apply(self, model: nn.Module, peft_task: str) -> nn.Module:
        """Return the model wrapped by PEFT; its base is frozen, LoRA factors and head train."""
        targets = self.target_modules
        config = LoraConfig(
            task_type=peft_task,
            r=self.r,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=list(targets) if isinstance(targets, tuple) else targets,
            layers_to_transform=None if self.layers is None else list(self.layers),
        )
        try:
            wrapped: nn.Module = get_peft_model(model, config)
        except ValueError as error:
            leaves = {name.rsplit(".", 1)[-1]: m for name, m in model.named_modules()}
            linear = sorted(
                name for name, m in leaves.items() if hasattr(m, "weight") and m.weight.dim() == 2
            )
            raise UserError(
                f"adapter target_modules={self.target_modules}, layers={self.layers}",
                f"PEFT finds nothing to adapt in {type(model).__name__} ({error})",
                f"Name some of its layers: {', '.join(linear)}, or write target_modules=all-linear",
            ) from error
        _widen_heads(wrapped)
        return wrapped


def _widen_heads(model: nn.Module) -> None:
    """Train heads in float32 beside a bfloat16 or float16 base, as PEFT does with LoRA's factors.

    In half precision most steps of a small learning rate would be rounded away, and so would most
    clients' updates in a mean.
    """
    for wrapper in model.modules():
        if isinstance(wrapper, ModulesToSaveWrapper):
            for head in wrapper.modules_to_save.values():
                if any(p.dtype in (torch.bfloat16, torch.float16) for p in head.parameters()):
                    head.float().register_forward_pre_hook(_to_float32)


def _to_float32(head: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x.float() if isinstance(x, Tensor) else x for x in inputs)
