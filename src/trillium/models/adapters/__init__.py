"""Adapters: which parameters of the model train, and so what FedLLM moves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import nn

from trillium.component import Component
from trillium.models.draws import Draws


class Adapter(Component, kind="adapter", package="trillium.models.adapters"):
    """Chooses the trainable parameters; all others, if it `freezes` any, are frozen."""

    freezes: ClassVar[bool] = True
    comes_off: ClassVar[bool] = False  # whether without it the model is the one that was loaded

    @property
    def virtual_tokens(self) -> int:
        """How many tokens stand in front of every text, and take positions of the model."""
        return 0

    @property
    def goes_on_from(self) -> str | None:
        """Folder or hub id of the adapter whose values it starts with, if of any."""
        return None

    def apply(self, model: nn.Module, peft_task: str, keep: Sequence[str] = ()) -> nn.Module:
        """Return the model with exactly the trainable parameters requiring gradients, or refuse it.

        The layers of the task head all train; `trillium.models.heads` narrows that down.

        Args:
            peft_task: PEFT's name of the task: `SEQ_CLS`, `TOKEN_CLS` or `CAUSAL_LM`.
            keep: names of modules whose weights no checkpoint holds: they stay frozen, and are saved
                with the adapter.
        """
        raise NotImplementedError

    def probe(self, module: nn.Module) -> None:
        """Refuse an adapted model that the method does not serve, by a short pass if need be."""

    def draws(self, module: nn.Module) -> Draws:
        """Return the tensors of an adapted model that start at random, and how each is drawn.

        They are drawn one by one, so that a part of the model gets the values that the whole has.
        """
        return {}
