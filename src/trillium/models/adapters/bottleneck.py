"""Bottleneck adapters: Parameter-Efficient Transfer Learning for NLP (Houlsby et al., 2019).

arXiv 1902.00751. The output `h` of a sublayer becomes `h + up(f(down(h)))` before it is added to the
residual stream: after attention and after the feed-forward layer, or, at half the size and with much
the same accuracy, after the latter alone (AdapterFusion, Pfeiffer et al., 2020, arXiv 2005.00247).

PEFT has no such method, so this file adds one to it: saved adapters load with
`PeftModel.from_pretrained` after `import trillium.models.adapters.bottleneck`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from peft import PeftConfig
from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from pydantic import Field
from torch import Tensor, nn

from trillium.errors import UserError
from trillium.models.adapters import Adapter
from trillium.models.adapters.attach import attach
from trillium.models.blocks import find_blocks
from trillium.models.draws import Draws

PEFT_TYPE = "BOTTLENECK"
_PREFIX = "bottleneck_"
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": nn.functional.relu,
    "gelu": nn.functional.gelu,
    "tanh": torch.tanh,
}
# How the last layer of each sublayer ends in the architectures of `transformers`.
_AFTER_ATTENTION = (
    *("attention.output.dense", "attn.c_proj", "attn.out_proj", "self_attn.o_proj"),
    *("self_attn.dense", "attention.dense", "attention.out_lin", "attention.out_proj", "attn.Wo"),
)
_AFTER_FEEDFORWARD = (
    *("output.dense", "mlp.c_proj", "mlp.down_proj", "mlp.dense_4h_to_h", "mlp.fc2", "fc2"),
    *("ffn.lin2", "mlp.fc_out", "mlp.Wo", "ffn_output"),
)


class Bottleneck(Adapter, name="bottleneck"):
    """Bottleneck adapters, with the task head trained beside them.

    Attributes:
        size: width of the bottleneck.
        after: the sublayers that get one: `both`, or the `feedforward` layers alone.
        activation: function between the two projections.
        target_modules: names of the linear layers whose outputs are changed; by default those that
            are known for the common architectures.
        layers: indices of the blocks that get adapters; all blocks by default.
    """

    comes_off: ClassVar[bool] = True

    size: int = Field(default=16, ge=1)
    after: Literal["both", "feedforward"] = "feedforward"
    activation: Literal["relu", "gelu", "tanh"] = "relu"
    target_modules: tuple[str, ...] | None = None
    layers: tuple[int, ...] | None = None

    def apply(self, model: nn.Module, peft_task: str, keep: Sequence[str] = ()) -> nn.Module:
        """Return the model wrapped by PEFT; its base is frozen, adapters and head train."""
        config = BottleneckConfig(
            task_type=peft_task,
            size=self.size,
            activation=self.activation,
            target_modules=self._targets(model),
        )
        return attach(model, config, keep)

    def draws(self, module: nn.Module) -> Draws:
        """Return the projections down, drawn as those of any linear layer."""
        drawn: dict[str, Callable[[Tensor], object]] = {}
        for name, layer in module.named_modules():
            if isinstance(layer, BottleneckLayer):
                for which, down in layer.bottleneck_down.named_children():
                    bound = float(down.weight.shape[1]) ** -0.5  # type: ignore[index]
                    fill = partial(nn.init.uniform_, a=-bound, b=bound)
                    path = f"{name}.bottleneck_down.{which}"
                    drawn |= {f"{path}.weight": fill, f"{path}.bias": fill}
        return drawn

    def _targets(self, model: nn.Module) -> list[str]:
        root, blocks = find_blocks(model)
        found = []
        for index, block in enumerate(blocks):
            if self.layers is None or index in self.layers:
                names = [f".{name}" for name, _ in block.named_modules()]
                found += [f"{root}.{index}{name}" for name in names if self._matches(name)]
        if not found:
            raise UserError(
                f"adapter bottleneck on {type(model).__name__}, layers={self.layers}",
                "no layer there is known to end a sublayer",
                "Name the last linear layers of its sublayers as target_modules",
            )
        return found

    def _matches(self, name: str) -> bool:
        if self.target_modules is not None:
            return name.endswith(tuple(f".{target}" for target in self.target_modules))
        if name.endswith(tuple(f".{end}" for end in _AFTER_ATTENTION)):
            return self.after == "both"
        return name.endswith(tuple(f".{end}" for end in _AFTER_FEEDFORWARD))


@dataclass
class BottleneckConfig(PeftConfig):  # type: ignore[misc]
    """What PEFT saves beside the weights; `target_modules` are the layers whose outputs change."""

    size: int = field(default=16)
    activation: str = field(default="relu")
    target_modules: list[str] | str | None = field(default=None)
    modules_to_save: list[str] | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PEFT_TYPE


class BottleneckLayer(nn.Module, BaseTunerLayer):  # type: ignore[misc]
    """A linear layer and, on its output, a bottleneck that is the identity at the start."""

    base_layer: nn.Module
    bottleneck_down: nn.ModuleDict
    bottleneck_up: nn.ModuleDict
    adapter_layer_names: ClassVar[tuple[str, ...]] = (f"{_PREFIX}down", f"{_PREFIX}up")

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: BottleneckConfig) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.bottleneck_down, self.bottleneck_up = nn.ModuleDict(), nn.ModuleDict()
        self.activations: dict[str, str] = {}
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: BottleneckConfig) -> None:
        """Add one adapter of that name."""
        tuner: Any = self  # with the methods of PEFT's class
        base = tuner.get_base_layer()
        width = base.nf if hasattr(base, "nf") else base.out_features
        down, up = nn.Linear(width, config.size), nn.Linear(config.size, width)
        nn.init.zeros_(up.weight)
        nn.init.zeros_(up.bias)
        self.bottleneck_down[adapter_name], self.bottleneck_up[adapter_name] = down, up
        self.activations[adapter_name] = config.activation
        tuner._move_adapter_to_device_of_base_layer(adapter_name)
        tuner.set_adapter(tuner.active_adapters, inference_mode=config.inference_mode)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the base layer's output `(…, width)`, changed by the active adapters."""
        hidden: Tensor = self.base_layer(x, *args, **kwargs)
        tuner: Any = self
        for name in () if tuner.disable_adapters else tuner.active_adapters:
            if name in self.bottleneck_down:
                down, up = tuner.bottleneck_down[name], tuner.bottleneck_up[name]
                inner = _ACTIVATIONS[self.activations[name]](down(hidden.to(down.weight.dtype)))
                hidden = hidden + up(inner).to(hidden.dtype)
        return hidden

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refuse: a bottleneck is no change of a weight."""
        raise NotImplementedError("a bottleneck adapter cannot be merged into weights")


class BottleneckModel(BaseTuner):  # type: ignore[misc]
    """PEFT's tuner of the method."""

    prefix = _PREFIX
    tuner_layer_cls = BottleneckLayer
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}

    def _create_and_replace(
        self,
        config: BottleneckConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
    ) -> None:
        if isinstance(target, BottleneckLayer):
            target.update_layer(adapter_name, config)
            return
        layer = BottleneckLayer(target, adapter_name, config)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)


# `peft.utils.register_peft_method` takes only names of PEFT's own enumeration; this is what it does.
PEFT_TYPE_TO_CONFIG_MAPPING[PEFT_TYPE] = BottleneckConfig
PEFT_TYPE_TO_TUNER_MAPPING[PEFT_TYPE] = BottleneckModel
PEFT_TYPE_TO_PREFIX_MAPPING[PEFT_TYPE] = _PREFIX
