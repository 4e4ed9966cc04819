"""Prefix-Tuning: Optimizing Continuous Prompts for Generation (Li and Liang, 2021, arXiv 2101.00190).

Every block's attention also sees trained keys and values, as if of tokens in front of the text.
"""

from __future__ import annotations

from collections.abc import Sequence

from peft import PrefixTuningConfig
from pydantic import Field
from torch import nn

from trillium.models.adapters import Adapter
from trillium.models.adapters.prompts import attach_prompt


class Prefix(Adapter, name="prefix"):
    """Prefix tuning through `peft`, with the task head trained beside it.

    Attributes:
        tokens: how many virtual tokens stand in front of the text.
        projection: train a small network that yields keys and values, which is steadier, but many
            times larger; what is shipped is its output.
    """

    tokens: int = Field(default=20, ge=1)
    projection: bool = False

    def apply(self, model: nn.Module, peft_task: str, keep: Sequence[str] = ()) -> nn.Module:
        """Return the model wrapped by PEFT; its base is frozen, prefix and head train."""
        config = PrefixTuningConfig(
            task_type=peft_task,
            num_virtual_tokens=self.tokens,
            prefix_projection=self.projection,
        )
        return attach_prompt(model, config, keep)
