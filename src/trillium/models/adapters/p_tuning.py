"""P-tuning: GPT Understands, Too (Liu et al., 2021, arXiv 2103.10385).

As prompt tuning, with the embeddings of the virtual tokens computed by a small trained network.
"""

from __future__ import annotations

from collections.abc import Sequence

from peft import PromptEncoderConfig
from pydantic import Field
from torch import nn

from trillium.models.adapters import Adapter
from trillium.models.adapters.prompts import attach_prompt


class PTuning(Adapter, name="p_tuning"):
    """P-tuning through `peft`, with the task head trained beside it.

    Attributes:
        tokens: how many virtual tokens stand in front of the text; they count into the longest input
            that the model takes.
        hidden_size: width of the network; the model's own where it is left out.
    """

    tokens: int = Field(default=20, ge=1)
    hidden_size: int | None = Field(default=None, ge=1)

    def apply(self, model: nn.Module, peft_task: str, keep: Sequence[str] = ()) -> nn.Module:
        """Return the model wrapped by PEFT; its base is frozen, prompt encoder and head train."""
        config = PromptEncoderConfig(
            task_type=peft_task,
            num_virtual_tokens=self.tokens,
            encoder_hidden_size=self.hidden_size,
        )
        return attach_prompt(model, config, keep)
