"""What a run's model says of rows that nobody has labelled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from trillium.config.experiment import Tree
from trillium.data.rows import inputs_of
from trillium.experiment.fit import check_lengths
from trillium.experiment.generation import check_room, write_on
from trillium.experiment.run import tokenize
from trillium.experiment.trained import (
    MOVED,
    Trained,
    load_trained,
    refuse_others,
    warn_of_cuts,
)
from trillium.tasks.batches import outputs, spans
from trillium.tasks.ends import before_end, end_ids
from trillium.tasks.language import LanguageTask
from trillium.tasks.writing import Writing

if TYPE_CHECKING:
    from datasets import Dataset

PREDICTING: Final = ("data.source", "evaluation.batch_tokens", "training.max_length")


@dataclass(frozen=True)
class Predicted:
    """What a model says of one row.

    Attributes:
        row: its number, from 1.
        given: the text that was looked at, or the prompt, by the name of its column.
        said: what the task makes of the model's answer (`Task.said`), or the response that it writes.
    """

    row: int
    given: dict[str, Any]
    said: dict[str, Any]

    def line(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return {"row": self.row, **self.given, **self.said}

    def cells(self) -> dict[str, Any]:
        """Return it as the cells of a table, with a column for each probability or value."""
        line = self.line()
        for what, one in (("probabilities", "probability"), ("values", "value")):
            line |= {f"{one} of {name}": n for name, n in line.pop(what, {}).items()}
        return line


def predict_run(
    folder: Path, changes: Tree, writing: Writing, client: str | None = None
) -> list[Predicted]:
    """Let the model of a run, or that of a client, judge or answer all rows of a source.

    Args:
        changes: settings that are to be others than in the run; `data.source` is where the rows are.

    Raises:
        UserError: the folder holds no such model, a setting has no effect, or the rows do not fit.
    """
    refuse_others(changes, (*PREDICTING, *MOVED), "predict")
    found = load_trained(folder, client, changes)
    rows = inputs_of(found.config.data.source, found.config.task.data_form)
    if isinstance(found.config.task, LanguageTask):
        return _answered(found, found.config.task, rows, writing)
    return _judged(found, rows)


@torch.inference_mode()
def _judged(found: Trained, rows: Dataset) -> list[Predicted]:
    model, config = found.model, found.config
    examples = tokenize(config, model, rows)
    warn_of_cuts(config, model, rows)
    check_lengths(config, model, [examples])
    module = model.mount(found.state).eval()
    result: dict[int, Predicted] = {}
    texts, most = rows["text"][:], config.evaluation.batch_tokens
    for batch, logits in outputs(module, examples, model.tokenizer.pad_token_id, most):
        for index, own in zip(batch.indices, logits.cpu(), strict=True):
            said = config.task.said(own, examples[index], found.labels, texts[index])
            result[index] = Predicted(index + 1, {"text": texts[index]}, said)
    return [result[index] for index in sorted(result)]


def _answered(
    found: Trained, task: LanguageTask, rows: Dataset, writing: Writing
) -> list[Predicted]:
    model, most, texts = found.model, found.config.evaluation.batch_tokens, list[str]()
    chat = task.chats(found.columns)
    prompts = [task.prompt_of(row, model.tokenizer, chat=chat) for row in rows]
    check_room(model, prompts, writing.max_new_tokens)
    ends = end_ids(model.tokenizer, model.module)
    for place in spans([len(prompt) + writing.max_new_tokens for prompt in prompts], most):
        written = write_on(found, prompts[place], writing)
        said = [before_end(tokens, ends) for tokens in written]
        texts += model.tokenizer.batch_decode(said, skip_special_tokens=True)
    return [
        Predicted(number, dict(row), {"response": text})
        for number, (row, text) in enumerate(zip(rows, texts, strict=True), start=1)
    ]
