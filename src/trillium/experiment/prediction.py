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
from trillium.tasks.batches import by_tokens, collate, spans
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
        given: the text that was classified, or the prompt, by the name of its column.
        label, probabilities: the most probable class, and the probability of each.
        response: what a language model writes.
    """

    row: int
    given: dict[str, Any]
    label: str | None = None
    probabilities: dict[str, float] | None = None
    response: str | None = None

    def line(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        found: dict[str, Any] = {"row": self.row, **self.given}
        if self.probabilities is None:
            return {**found, "response": self.response}
        assert self.label is not None
        sure = self.probabilities[self.label]
        return {
            **found,
            "label": self.label,
            "probability": sure,
            "probabilities": self.probabilities,
        }

    def cells(self) -> dict[str, Any]:
        """Return it as the cells of a table, with a column for the probability of each class."""
        line = self.line()
        shares = line.pop("probabilities", {})
        return {**line, **{f"probability of {name}": share for name, share in shares.items()}}


def predict_run(
    folder: Path, changes: Tree, writing: Writing, client: str | None = None
) -> list[Predicted]:
    """Let the model of a run, or that of a client, classify or answer all rows of a source.

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
    return _classified(found, rows)


@torch.inference_mode()
def _classified(found: Trained, rows: Dataset) -> list[Predicted]:
    model, config = found.model, found.config
    examples = tokenize(config, model, rows)
    warn_of_cuts(config, model, rows)
    check_lengths(config, model, [examples])
    module = model.mount(found.state).eval()
    result: dict[int, Predicted] = {}
    texts = list(rows["text"])
    for chunk in by_tokens(examples, config.evaluation.batch_tokens):
        batch = collate(chunk, model.tokenizer.pad_token_id, model.device)
        shares = module(**batch.inputs).logits.double().softmax(-1).cpu().tolist()
        for index, own in zip(batch.indices, shares, strict=True):
            probabilities = dict(zip(found.labels, own, strict=True))
            label = max(probabilities, key=probabilities.__getitem__)
            given = {"text": texts[index]}
            result[index] = Predicted(index + 1, given, label, probabilities)
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
        Predicted(number, dict(row), response=text)
        for number, (row, text) in enumerate(zip(rows, texts, strict=True), start=1)
    ]
