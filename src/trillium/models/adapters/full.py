"""Every parameter trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import nn

from trillium.models.adapters import Adapter


class Full(Adapter, name="full"):
    """Full fine-tuning: no adapter, all parameters train and are exchanged."""

    freezes: ClassVar[bool] = False

    def apply(self, model: nn.Module, peft_task: str, keep: Sequence[str] = ()) -> nn.Module:
        """Return the model itself with all parameters trainable."""
        return model.requires_grad_(True)
