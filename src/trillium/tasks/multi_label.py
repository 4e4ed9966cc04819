"""Multi-label classification: any number of labels for a text, each true or not by itself.

Every label of a text is a prediction of two outcomes, and a logit the log-odds between them. So
training minimises binary cross-entropy as Transformers' `multi_label_classification` does, soft labels
are a probability for each label, averaged and distilled label by label, and a client's weight is its
texts times the labels that there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from trillium.errors import UserError
from trillium.tasks import IGNORE, Example, Task
from trillium.tasks.batches import of_texts, outputs

if TYPE_CHECKING:
    from datasets import Dataset


class MultiLabel(Task, name="multi_label"):
    """Predict which labels a text has; the head is the model's own classification head.

    Metrics: `f1_micro` (over all labels of all texts), `f1_macro` (average over the labels that occur
    in the held-out data or the predictions) and `loss` (mean binary cross-entropy of a label, nats).

    Attributes:
        threshold: the probability above which a text is said to have a label.
    """

    threshold: float = Field(default=0.5, gt=0, lt=1)

    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    peft_task: ClassVar[str] = "SEQ_CLS"
    data_form: ClassVar[str] = "multi_label"
    problem_type: ClassVar[str | None] = "multi_label_classification"

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

    def select(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Every label of every text counts: it is not true, or it is."""
        return as_odds(logits), labels.flatten()

    def num_outcomes(self, num_outputs: int) -> int:
        """No, and yes."""
        return 2

    def most_targets(self, max_length: int, num_outputs: int) -> int:
        """All labels."""
        return num_outputs

    def num_targets(self, example: Example) -> int:
        """All labels."""
        return example.labels.numel()

    @torch.inference_mode()
    def evaluate(
        self, module: nn.Module, examples: list[Example], tokenizer: Any, batch_tokens: int
    ) -> dict[str, float]:
        """Return both F1 and the loss."""
        if not examples:
            raise UserError(
                "no held-out examples", "nothing can be measured", "Give some test rows"
            )
        loss, predicted, expected = 0.0, [], []
        for batch, logits in outputs(module, examples, tokenizer.pad_token_id, batch_tokens):
            loss += float(self.loss(logits, batch.labels)[0])
            predicted.append(self._given(logits).cpu())
            expected.append(batch.labels[:, 0].cpu() == 1)
        found, wanted = torch.cat(predicted), torch.cat(expected)
        both, hits = found.sum(0) + wanted.sum(0), (found & wanted).sum(0)
        per_label = (2 * hits.double() / both)[both > 0]
        return {
            "f1_micro": 2 * int(hits.sum()) / max(int(both.sum()), 1),
            "f1_macro": float(per_label.mean()) if len(per_label) else 0.0,
            "loss": loss / max(wanted.numel(), 1),
            "num_examples": len(examples),
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
