"""BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked Language-models.

Ben Zaken et al. (2021, arXiv 2106.10199). Only biases train; here also, if asked for, the norms
(Zhao et al., 2023, arXiv 2312.11420), which is all there is to train in models without biases.
"""

from __future__ import annotations

from collections.abc import Sequence

from peft import LoraConfig
from peft.utils.constants import DUMMY_TARGET_MODULES
from torch import nn

from trillium.errors import UserError
from trillium.models.adapters import Adapter
from trillium.models.adapters.attach import attach
from trillium.models.heads import head_modules


class BitFit(Adapter, name="bitfit"):
    """All biases of the model, with the task head trained beside them.

    What is saved is, to PEFT, a LoRA adapter without any factor that has learnt biases. Beside a base
    in half precision the biases themselves stay in it; prefer float32.

    Attributes:
        layer_norm: train the norms' weights, too.
    """

    layer_norm: bool = False

    def apply(self, model: nn.Module, peft_task: str, keep: Sequence[str] = ()) -> nn.Module:
        """Return the model wrapped by PEFT; biases, norms if asked for, and the head train."""
        heads = tuple(f"{name}." for name in head_modules(model))
        norms = [
            name
            for name, module in model.named_modules()
            if "norm" in type(module).__name__.lower()
            and any(True for _ in module.parameters(recurse=False))
            and (peft_task == "CAUSAL_LM" or not name.startswith(heads))
        ]
        has_biases = any(name.endswith(".bias") for name, _ in model.named_parameters())
        if not has_biases and not self.layer_norm:
            raise UserError(
                f"adapter bitfit on {type(model).__name__}",
                "the model has no biases to train",
                "Write adapter.layer_norm=true to train its norms, or choose lora or ia3",
            )
        config = LoraConfig(
            task_type=peft_task, target_modules=DUMMY_TARGET_MODULES, bias="all", r=1
        )
        return attach(model, config, keep, norms if self.layer_norm else ())
