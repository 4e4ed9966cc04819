"""Texts of a file on the server's machine: of another domain than the clients', for example."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from trillium.data.publics import Public, Row
from trillium.data.sources.files import read_table
from trillium.models.base import ModelConfig
from trillium.models.load import LanguageModel
from trillium.rng import derive_seed
from trillium.tasks import Task
from trillium.training.meters import Meter

BATCH = 256  # rows at once


class File(Public, name="file"):
    """Take rows of a file, in an order that follows from the seed; their labels are not read.

    Attributes:
        path: csv, JSON lines or parquet; relative to where the command is given.
        text: column of the texts, where the task classifies.
        prompt, completion: columns of the two, in language modelling.
    """

    path: Path
    text: str = "text"
    prompt: str = "prompt"
    completion: str = "completion"

    def write(
        self, task: Task, base: ModelConfig, model: LanguageModel, seed: int, meter: Meter
    ) -> Iterator[list[Row]]:
        """Yield the rows of the file, each once."""
        is_lm = task.peft_task == "CAUSAL_LM"
        names = (
            {"prompt": self.prompt, "completion": self.completion} if is_lm else {"text": self.text}
        )
        table = read_table(self.path)
        columns = {
            field: table.texts(
                f"data.public.{field}", name, table.full_column(f"data.public.{field}", name)
            )
            for field, name in names.items()
        }
        order = np.random.default_rng(derive_seed(seed, "public", self.name)).permutation(
            len(table)
        )
        for start in range(0, len(order), BATCH):
            some = order[start : start + BATCH]
            yield [{field: values[row] for field, values in columns.items()} for row in some]
