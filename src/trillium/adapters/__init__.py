"""Adapters: which parameters of the model train, and so what FedLLM moves."""

from __future__ import annotations

from torch import nn

from trillium.component import Component


class Adapter(Component, kind="adapter", package="trillium.adapters"):
    """Chooses the trainable parameters of a model; all others are frozen."""

    def apply(self, model: nn.Module, peft_task: str) -> nn.Module:
        """Return the model with exactly the trainable parameters requiring gradients.

        Args:
            model: a Hugging Face model with its task head.
            peft_task: PEFT's name of the task, `SEQ_CLS` or `CAUSAL_LM`.
        """
        raise NotImplementedError
