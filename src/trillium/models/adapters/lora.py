"""LoRA: Low-Rank Adaptation of Large Language Models (Hu et al., 2021, arXiv 2106.09685).

A frozen weight `W (out, in)` gets the trainable change `alpha / r * B @ A`, with `A (r, in)` drawn at
random and `B (out, r)` zero at the start.

Variants: rsLoRA (Kalajdzievski, 2023, arXiv 2312.03732) scales by `alpha / sqrt(r)`; DoRA (Liu et al.,
2024, arXiv 2402.09353) also trains the norm of each row of the changed weight; FFA-LoRA (Sun et al.,
2024, arXiv 2403.12313), which never trains `A`, wants its rows orthonormal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, ClassVar, Literal, Self

from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from pydantic import Field, model_validator
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from trillium.errors import UserError
from trillium.files import PathOrName
from trillium.models.adapters import Adapter
from trillium.models.adapters.attach import attach
from trillium.models.blocks import find_blocks
from trillium.models.draws import Draws


class Lora(Adapter, name="lora"):
    """LoRA through `peft`, with the task head trained beside it.

    Attributes:
        r: rank of the change.
        alpha: the change is scaled by `alpha / r`.
        dropout: dropout on the input of the adapter while training.
        target_modules: names of the linear layers that get an adapter, `all-linear` for all of them, in
            a mixture of experts for those outside the part with the experts; PEFT's choice for the
            architecture by default, all of them where PEFT has none.
        experts: names of tensors with the weights of all experts that get an adapter, too, such as
            `[gate_up_proj, down_proj]` (PEFT's `target_parameters`): `r` for each expert.
        layers: indices of the blocks that get an adapter; all blocks by default.
        rslora: scale by `alpha / sqrt(r)` instead.
        dora: also train the norms of the rows of each changed weight (DoRA). The result is not linear
            in what is exchanged, whichever tensors are fixed.
        from: folder, or id on the hub, of a LoRA adapter in PEFT's format, from which training goes on.
            The options above are read from a folder; for an id on the hub they must be written.
        init: how `A` is drawn: PEFT's `default`, or with `orthonormal` rows.
    """

    comes_off: ClassVar[bool] = True

    r: int = Field(default=8, ge=1)
    alpha: float = Field(default=16.0, gt=0)
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    target_modules: tuple[str, ...] | Literal["all-linear"] | None = None
    experts: tuple[str, ...] | None = None
    layers: tuple[int, ...] | None = None
    rslora: bool = False
    dora: bool = False
    from_: PathOrName | None = Field(default=None, alias="from")
    init: Literal["default", "orthonormal"] = "default"

    @model_validator(mode="after")
    def _begins_once(self) -> Self:
        """Refuse to draw what is read."""
        if self.from_ is not None and self.init != "default":
            raise UserError(
                f"init={self.init} with from={self.from_}",
                "training goes on from the values of that adapter, so no values are drawn",
                "Leave one of the two out",
            )
        return self

    @model_validator(mode="after")
    def _experts_take_plain_lora(self) -> Self:
        """Refuse what PEFT does not do with tensors of experts."""
        if self.experts is not None and (self.dora or self.dropout or self.layers is not None):
            given = "dora" if self.dora else "dropout" if self.dropout else "layers"
            raise UserError(
                f"{given} with experts={list(self.experts)}",
                "PEFT adapts the tensors of experts by plain LoRA alone, in all blocks",
                f"Leave {given} or experts out",
            )
        return self

    @property
    def goes_on_from(self) -> str | None:
        """Folder or hub id of the adapter to go on from."""
        return self.from_

    def apply(
        self,
        model: nn.Module,
        peft_task: str,
        keep: Sequence[str] = (),
        new_tokens: Sequence[int] = (),
    ) -> nn.Module:
        """Return the model wrapped by PEFT; its base is frozen, LoRA factors and head train.

        So do the rows of `new_tokens`, in the embeddings and in front of the logits.
        """
        known: Any = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
        model_type = getattr(model.config, "model_type", None)
        targets: Any = self.target_modules
        if targets is None:
            targets = known.get(model_type, "all-linear")
        if targets == "all-linear":
            # Beside `layers`, PEFT takes names alone.
            targets = _outside_experts(model) or (
                targets if self.layers is None else _linear_names(model)
            )
        config = LoraConfig(
            task_type=peft_task,
            r=self.r,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=targets if isinstance(targets, str) else list(targets),
            target_parameters=None if self.experts is None else list(self.experts),
            layers_to_transform=None if self.layers is None else list(self.layers),
            use_rslora=self.rslora,
            use_dora=self.dora,
            trainable_token_indices=_rows(model, new_tokens) if new_tokens else None,
        )
        return attach(model, config, keep)

    def draws(self, module: nn.Module) -> Draws:
        """Return `A` of all layers, in embeddings `B`, drawn as PEFT does or with orthonormal rows."""
        default = partial(nn.init.kaiming_uniform_, a=math.sqrt(5))
        drawn: dict[str, Callable[[Tensor], object]] = {}
        for name, layer in module.named_modules():
            if isinstance(layer, LoraLayer):
                fill = nn.init.orthogonal_ if self.init == "orthonormal" else default
                drawn |= {f"{name}.lora_A.{which}.weight": fill for which in layer.lora_A}
                which_b = layer.lora_embedding_B
                drawn |= {f"{name}.lora_embedding_B.{which}": nn.init.normal_ for which in which_b}
        return drawn


def _linear_names(model: nn.Module) -> tuple[str, ...]:
    """Return what the linear layers of blocks are called there."""
    layers = (named for block in find_blocks(model)[1] for named in block.named_modules())
    kinds = (nn.Linear, Conv1D)
    return tuple({name.rpartition(".")[2]: None for name, m in layers if isinstance(m, kinds)})


def _outside_experts(model: nn.Module) -> tuple[str, ...]:
    """Return what linear layers are called in blocks with experts, but for the part that has these.

    Experts are one tensor of three dims, which no linear layer is; what stands beside them has names
    that PEFT takes for theirs. Nothing where the model has none.
    """
    found: dict[str, None] = {}
    for block in _blocks(model):
        holders = [
            name.rpartition(".")[0] or name
            for name, module in block.named_modules()
            if not isinstance(module, nn.modules.conv._ConvNd)
            and any(p.dim() == 3 for p in module.parameters(recurse=False))
        ]
        parts = tuple(f"{name}." for name in holders)
        for name, module in block.named_modules() if parts else ():
            if isinstance(module, nn.Linear | Conv1D) and not name.startswith(parts):
                found[name.rpartition(".")[2]] = None
    return tuple(found)


def _blocks(model: nn.Module) -> Iterable[nn.Module]:
    try:
        return find_blocks(model)[1]
    except UserError:  # there is no list of them
        return ()


def _rows(model: Any, tokens: Sequence[int]) -> dict[str, list[int]]:
    """Return which rows of which layers are of these tokens, as PEFT wants it."""
    embeddings, output = model.get_input_embeddings(), model.get_output_embeddings()
    layers = [embeddings]
    if output is not None and output.weight is not embeddings.weight:
        layers.append(output)
    names = {id(module): name.rpartition(".")[2] for name, module in model.named_modules()}
    return {names[id(layer)]: list(tokens) for layer in layers}
