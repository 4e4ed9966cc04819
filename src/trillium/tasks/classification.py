"""Sequence classification: one class per text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from trillium.tasks import IGNORE, Adjustment, Example, Task, View
from trillium.tasks.batches import of_texts, outputs

if TYPE_CHECKING:
    from datasets import Dataset


class Classification(Task, name="classification"):
    """Predict the class of a text; the head is the model's own classification head.

    Metrics: `accuracy`, `f1` (macro average over the classes that occur in the held-out data or the
    predictions) and `loss` (mean cross-entropy, nats).

    Attributes:
        logit_adjustment: adds so many times the logarithm of the client's own class frequencies to the
            logits in training, so that a client does not unlearn what it has little of (Menon et al.,
            2021, arXiv 2007.07314; FedLC, Zhang et al., 2022, arXiv 2209.00189), and a class that it
            lacks has no part in its loss (FedRS, Li and Zhan, KDD 2021, makes its part smaller); 0 is
            without.
    """

    logit_adjustment: float = Field(default=0.0, ge=0)

    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    peft_task: ClassVar[str] = "SEQ_CLS"
    data_form: ClassVar[str] = "classification"
    has_classes: ClassVar[bool] = True
    tallied: ClassVar[Mapping[str, bool]] = {
        "loss": False,
        "hits": True,
        "said": True,
        "meant": True,
    }

    @property
    def measure(self) -> str:
        """Accuracy."""
        return "accuracy"

    def tokenize(
        self, rows: Dataset, tokenizer: Any, max_length: int | None, num_outputs: int = 0
    ) -> list[Example]:
        """Tokenise the columns `text` and `label`; without a label an example counts for nothing."""
        labels = rows["label"][:] if "label" in rows.column_names else [IGNORE] * len(rows)
        return of_texts(rows["text"][:], map(torch.tensor, labels), tokenizer, max_length)

    def adjustment(self, examples: Sequence[Example]) -> Adjustment | None:
        """Return what gives the scaled logarithm of the class frequencies, `(classes,)`."""
        if not self.logit_adjustment or not examples:
            return None
        labels = torch.stack([example.labels for example in examples])

        def log_prior(logits: Tensor) -> Tensor:
            counts = torch.bincount(labels, minlength=logits.shape[-1])
            # Minus infinity for none: Adam would make steps of the least gradient there is.
            return self.logit_adjustment * (counts / counts.sum()).log().to(logits)

        return log_prior

    def select(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Every row counts."""
        return logits, labels

    def num_targets(self, example: Example) -> int:
        """One."""
        return 1

    def observe(self, view: View) -> dict[str, Tensor]:
        """Return the loss, and how often each class was said, was meant, and was both."""
        output, labels = view.output, view.labels
        said, counts = output.argmax(-1), output.new_zeros(1, output.shape[-1], dtype=torch.float64)
        hits = (said == labels).double()
        return {
            "loss": self.loss(output, labels)[0].double()[None],
            "hits": counts.index_add(1, labels, hits[None]),
            "said": counts.index_add(1, said, torch.ones_like(hits)[None]),
            "meant": counts.index_add(1, labels, torch.ones_like(hits)[None]),
        }

    def metrics(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Return accuracy, macro F1 and loss."""
        count = float(sums["num_examples"])
        return {
            "accuracy": float(sums["hits"].sum()) / count,
            "f1": macro_f1(sums["hits"], sums["said"], sums["meant"]),
            "loss": float(sums["loss"]) / count,
            "num_examples": int(count),
        }

    @torch.inference_mode()
    def answers(
        self, module: nn.Module, examples: list[Example], tokenizer: Any, batch_tokens: int
    ) -> dict[str, Any]:
        """Return how often each class was taken for which, as [class, taken for, times]."""
        found = Counter[tuple[int, int]]()
        for batch, logits in outputs(module, examples, tokenizer.pad_token_id, batch_tokens):
            found.update(zip(batch.labels.tolist(), logits.argmax(-1).tolist(), strict=True))
        return {"confusion": [[*pair, times] for pair, times in sorted(found.items())]}

    def said(
        self, logits: Tensor, example: Example, labels: Sequence[str], text: str
    ) -> dict[str, Any]:
        """Return the most probable class, and the probability of each."""
        shares = dict(zip(labels, logits.double().softmax(-1).tolist(), strict=True))
        label = max(shares, key=shares.__getitem__)
        return {"label": label, "probability": shares[label], "probabilities": shares}


def macro_f1(hits: Tensor, said: Tensor, meant: Tensor) -> float:
    """Return the mean F1 over the classes that were said or meant, all `(classes,)` counts."""
    both = said + meant
    known = int((both > 0).sum())
    return float((2 * hits.double() / both.clamp(min=1)).sum()) / known if known else 0.0
