"""Publics: where the public set comes from, on which clients of KD-FedLLM give their opinions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from trillium.component import Component
from trillium.models.base import ModelConfig
from trillium.models.load import LanguageModel
from trillium.tasks import Task
from trillium.training.meters import Meter

Row = dict[str, str]
"""A row without label: `text`, or `prompt` and `completion`."""


class Public(Component, kind="public", package="trillium.data.publics"):
    """Where the public set comes from.

    Class variables:
        is_written: the server writes the texts itself, once, before the first round. No training row
            is taken for them then, and they have no labels.
    """

    is_written: ClassVar[bool] = True

    def check(self, task: Task) -> None:
        """Refuse settings that contradict each other."""

    def write(
        self, task: Task, base: ModelConfig, model: LanguageModel, seed: int, meter: Meter
    ) -> Iterator[list[Row]]:
        """Yield rows without end, some at a time, the same ones for the same seed.

        Rows may occur twice, may be blank and may be those of others; whoever asks leaves them out.
        They have the columns of the task. A model that cannot write, or has no words, is refused.
        """
        raise NotImplementedError
