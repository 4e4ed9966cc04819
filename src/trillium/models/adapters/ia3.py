"""(IA)³: Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning.

Liu et al. (2022, arXiv 2205.05638). Keys, values and the inner activations of the feed-forward
layers are multiplied, entry by entry, with trained vectors that start at one: some hundredths of a
percent of the model's parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from peft import IA3Config
from pydantic import model_validator
from torch import nn
from transformers.pytorch_utils import Conv1D

from trillium.errors import UserError
from trillium.models.adapters import Adapter
from trillium.models.adapters.attach import attach


class IA3(Adapter, name="ia3"):
    """(IA)³ through `peft`, with the task head trained beside it.

    Attributes:
        target_modules: names of the linear layers that are scaled; PEFT's choice for the
            architecture by default.
        feedforward_modules: those of them whose input is scaled instead of their output.
    """

    comes_off: ClassVar[bool] = True

    target_modules: tuple[str, ...] | None = None
    feedforward_modules: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _inputs_are_targets(self) -> IA3:
        if not set(self.feedforward_modules or ()) <= set(self.target_modules or ()):
            raise UserError(
                f"feedforward_modules={list(self.feedforward_modules or ())}",
                f"they are not all among target_modules={list(self.target_modules or ())}",
                "Name them in target_modules, too",
            )
        return self

    def apply(self, model: nn.Module, peft_task: str, keep: Sequence[str] = ()) -> nn.Module:
        """Return the model wrapped by PEFT; its base is frozen, vectors and head train."""
        inputs = self.feedforward_modules
        if self.target_modules is not None:
            inputs = inputs or ()
        config = IA3Config(
            task_type=peft_task,
            target_modules=None if self.target_modules is None else list(self.target_modules),
            feedforward_modules=None if inputs is None else list(inputs),
            fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        )
        return attach(model, config, keep)
