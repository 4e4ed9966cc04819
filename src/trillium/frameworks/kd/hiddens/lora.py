"""What LoRA's first factor makes of a hidden state, `h = A x`.

After the adaptive top-k distillation of arXiv 2509.01750 (2025), where clients send it beside the
largest logits. `A` is the one that all sides have drawn from the same seed, not the one that each has
trained since: products with different maps could be neither averaged nor compared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from peft.tuners.lora import LoraLayer
from pydantic import Field
from torch import nn

from trillium.errors import UserError, suggest
from trillium.frameworks.kd.hiddens import Hidden
from trillium.frameworks.kd.hiddens.probe import Probe, inputs_of
from trillium.models.adapters.lora import Lora

if TYPE_CHECKING:
    from trillium.federation.setting import Setting
    from trillium.federation.side import Side


class LoraHidden(Hidden, name="lora"):
    """The input of an adapted layer, times the adapter's initial `A`: as many entries as its rank.

    In classification, the mean over the tokens of a text, wherever the model pools later; in language
    modelling, those at each token in front of a supervised one.

    Attributes:
        layer: name of the adapted layer or the end of its name, such as `layer.3.attention.self.query`;
            the last one in the model's order where it is left out.
        weight: factor of the mean-squared error in the distillation loss.
    """

    layer: str | None = None
    weight: float = Field(default=0.1, gt=0)

    def check(self, config: Setting) -> None:
        """Refuse other adapters, and different models."""
        if not isinstance(config.adapter, Lora):
            raise UserError(
                f"framework.hidden={self.name} with adapter={config.adapter.name}",
                "it takes the first factor of LoRA",
                "Write adapter=lora, or framework.hidden=projected",
            )
        self._check_common_space(config)

    def probe(self, side: Side) -> Probe:
        """Return what reads them."""
        name = self._find(side.model.module)
        matrix = side.model.initial[f"{name}.lora_A.default.weight"].T
        return Probe(
            lambda module: inputs_of(module.get_submodule(name)), matrix, side.task, self.weight
        )

    def _find(self, module: nn.Module) -> str:
        """Return the full name of the layer."""
        adapted: list[str] = [
            name
            for name, layer in module.named_modules()
            if isinstance(layer, LoraLayer) and "default" in layer.lora_A
        ]
        fits = [n for n in adapted if self.layer is None or f".{n}".endswith(f".{self.layer}")]
        if not fits:
            raise UserError(
                f"framework.hidden.layer={self.layer}",
                "no adapted layer has a name that ends like this",
                suggest(self.layer or "", [n.removeprefix("base_model.model.") for n in adapted]),
            )
        return fits[-1]
