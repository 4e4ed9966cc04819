"""Prompt tuning: The Power of Scale for Parameter-Efficient Prompt Tuning.

Lester et al. (2021, arXiv 2104.08691). Trained embeddings of virtual tokens stand in front of those of
the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from peft import PromptTuningConfig
from pydantic import Field
from torch import nn

from trillium.models.adapters import Adapter
from trillium.models.adapters.prompts import attach_prompt


class Prompt(Adapter, name="prompt"):
    """Prompt tuning through `peft`, with the task head trained beside it.

    Attributes:
        tokens: how many virtual tokens stand in front of the text; they count into the longest input
            that the model takes.
        init: draw embeddings at `random`, or those of random words of the `vocabulary`.
    """

    tokens: int = Field(default=20, ge=1)
    init: Literal["random", "vocabulary"] = "random"

    def apply(self, model: nn.Module, peft_task: str, keep: Sequence[str] = ()) -> nn.Module:
        """Return the model wrapped by PEFT; its base is frozen, embeddings and head train."""
        config = PromptTuningConfig(
            task_type=peft_task,
            num_virtual_tokens=self.tokens,
            prompt_tuning_init="RANDOM" if self.init == "random" else "SAMPLE_VOCAB",
        )
        return attach_prompt(model, config, keep)
