"""Multi-label classification: any number of labels for a text, each true or not by itself.

Every label of a text is a prediction of two outcomes, and a logit the log-odds between them. So
training minimises binary cross-entropy as Transformers' `multi_label_classification` does, soft labels
are a probability for each label, averaged and distilled label by label, and a client's weight is its
texts times the labels that there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from trillium.tasks import IGNORE, Example, Task, View
from trillium.tasks.batches import of_texts
from trillium.tasks.classification import macro_f1

if TYPE_CHECKING:
    from datasets import Dataset


class ByOdds(Task):
    """A task in which every output of a text is a prediction of two outcomes: no, and yes."""

    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    peft_task: ClassVar[str] = "SEQ_CLS"

    def select(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Every output of every text counts, by its odds."""
        return as_odds(logits), labels.flatten()

    def num_outcomes(self, num_outputs: int) -> int:
        """Two."""
        return 2

    def most_targets(self, max_length: int, num_outputs: int) -> int:
        """All outputs."""
        return num_outputs

    def num_targets(self, example: Example) -> int:
        """All outputs."""
        return example.labels.numel()


class MultiLabel(ByOdds, name="multi_label"):
    """Predict which labels a text has; the head is the model's own classification head.

    Metrics: `f1_micro` (over all labels of all texts), `f1_macro` (average over the labels that occur
    in the held-out data or the predictions) and `loss` (mean binary cross-entropy of a label, nats).

    Attributes:
        threshold: the probability above which a text is said to have a label.
    """

    threshold: float = Field(default=0.5, gt=0, lt=1)

    data_form: ClassVar[str] = "multi_label"
    problem_type: ClassVar[str | None] = "multi_label_classification"
    tallied: ClassVar[Mapping[str, bool]] = {
        "loss": False,
        "num_predictions": False,
        "hits": True,
        "said": True,
        "meant": True,
    }

    @property
    def measure(self) -> str:
        """Micro F1."""
        return "f1_micro"

    def tokenize(
        self, rows: Dataset, tokenizer: Any, max_length: int | None, num_outputs: int = 0
    ) -> list[Example]:
        """Tokenise `text`, and `label`, numbers of labels; without them nothing is known of a text."""
        known = "label" in rows.column_names
        labels = [torch.full((1, num_outputs), 0 if known else IGNORE) for _ in range(len(rows))]
        for own, numbers in zip(labels, rows["label"][:] if known else (), strict=known):
            own[0, numbers] = 1
        return of_texts(rows["text"][:], labels, tokenizer, max_length)

    def observe(self, view: View) -> dict[str, Tensor]:
        """Return the loss, and how often each label was given, was so, and was both."""
        output, labels = view.output, view.labels
        given, wanted = self._given(output), labels[:, 0] == 1
        return {
            "loss": self.loss(output, labels)[0].double()[None],
            "num_predictions": torch.full_like(given[:1, 0], labels.numel(), dtype=torch.float64),
            "hits": (given & wanted).double(),
            "said": given.double(),
            "meant": wanted.double(),
        }

    def metrics(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Return both F1 and the loss."""
        hits, both = sums["hits"], sums["said"] + sums["meant"]
        return {
            "f1_micro": 2 * float(hits.sum()) / max(float(both.sum()), 1.0),
            "f1_macro": macro_f1(hits, sums["said"], sums["meant"]),
            "loss": float(sums["loss"]) / max(float(sums["num_predictions"]), 1.0),
            "num_examples": int(sums["num_examples"]),
        }

    def said(
        self, logits: Tensor, example: Example, labels: Sequence[str], text: str
    ) -> dict[str, Any]:
        """Return the labels that the text has, and the probability of each."""
        given = [label for label, is_so in zip(labels, self._given(logits), strict=True) if is_so]
        shares = dict(zip(labels, logits.double().sigmoid().tolist(), strict=True))
        return {"labels": given, "probabilities": shares}

    def _given(self, logits: Tensor) -> Tensor:
        return logits.double().sigmoid() > self.threshold


def as_odds(logits: Tensor) -> Tensor:
    """Return logits `(batch, outputs)` as those of two outcomes each, `(batch * outputs, 2)`.

    Their difference is the logit, and the softmax of the second its sigmoid.
    """
    return torch.stack([torch.zeros_like(logits), logits], dim=-1).flatten(0, -2)
