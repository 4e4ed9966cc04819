"""Every parameter trains."""

from __future__ import annotations

from torch import nn

from trillium.adapters import Adapter


class Full(Adapter, name="full"):
    """Full fine-tuning: no adapter, all parameters train and are exchanged."""

    def apply(self, model: nn.Module, peft_task: str) -> nn.Module:
        """Return the model itself with all parameters trainable."""
        return model.requires_grad_(True)
