"""Regression: one number for a text, or several.

Each number is a prediction. Training minimises the squared error, as Transformers' `regression` does,
and a client's weight is its texts times the numbers of each. A soft label is a number, too: it crosses
as the odds of two outcomes, whose logarithm it is, so that each row of soft labels is a distribution.
The mean of the logarithms is that of the numbers, and students come nearer to it by the squared error.
Soft labels beyond -80 and 80 are cut to that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Final

import torch
from torch import Tensor

from trillium.tasks import Example, View
from trillium.tasks.batches import of_texts
from trillium.tasks.multi_label import ByOdds

if TYPE_CHECKING:
    from datasets import Dataset


ROUNDING: Final = 1e-13  # of a sum of squares: less than this is no spread


class Regression(ByOdds, name="regression"):
    """Predict numbers; the head is the model's own classification head, with an output for each.

    Metrics, of several numbers as a mean over them: `pearson` and `spearman`, the correlations of what
    is said with what is so (0 where either is always the same), and `rmse`, the root of the mean
    squared error; `loss` is the mean squared error of all.
    """

    data_form: ClassVar[str] = "regression"
    problem_type: ClassVar[str | None] = "regression"
    says_values: ClassVar[bool] = True
    tallied: ClassVar[Mapping[str, bool]] = {"rows": False} | dict.fromkeys(
        ("said", "meant", "said_squares", "meant_squares", "products", "errors", "spearman"), True
    )
    signed: ClassVar[frozenset[str]] = frozenset({"said", "meant", "products", "spearman"})

    @property
    def measure(self) -> str:
        """Pearson's correlation."""
        return "pearson"

    def tokenize(
        self, rows: Dataset, tokenizer: Any, max_length: int | None, num_outputs: int = 0
    ) -> list[Example]:
        """Tokenise `text`, and `label`, a list of numbers; without it nothing is known of a text."""
        known = "label" in rows.column_names
        numbers = rows["label"][:] if known else [[math.nan] * num_outputs] * len(rows)
        labels = (torch.tensor([own], dtype=torch.float32) for own in numbers)
        return of_texts(rows["text"][:], labels, tokenizer, max_length)

    def unlabelled(self, example: Example) -> Example:
        """Return it with unknown numbers."""
        return replace(example, labels=torch.full_like(example.labels, math.nan))

    def error(self, rows: Tensor, targets: Tensor) -> Tensor:
        """Return the squared error of known numbers."""
        numbers, known = as_values(rows), self.known(targets)
        return (numbers[known] - targets[known].to(numbers)).square().sum()

    def known(self, labels: Tensor) -> Tensor:
        """Return which numbers are."""
        return ~labels.isnan()

    def as_numbers(self, labels: Tensor) -> Tensor:
        """Return the bits of the numbers in float32."""
        return labels.float().contiguous().view(torch.int32)

    def from_numbers(self, numbers: Tensor, num_outputs: int) -> Tensor:
        """Return the numbers that such bits stand for."""
        labels = numbers.int().view(torch.float32)
        if bool(labels.isinf().any()):
            raise ValueError("a number to predict is infinite")
        return labels

    def observe(self, view: View) -> dict[str, Tensor]:
        """Return what is said and what is so."""
        return {"said": view.output.double(), "meant": view.labels[:, 0].double()}

    def sums(self, seen: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return sums over each number; ranks do not add up, so of their correlation a weighted one."""
        said, meant = seen["said"], seen["meant"]
        pairs = zip(said.T.contiguous(), meant.T.contiguous(), strict=True)
        ranked = [float(correlation(moments(*map(ranks, pair)))) for pair in pairs]
        spearman = len(said) * torch.tensor(ranked, dtype=torch.float64)
        return {
            **moments(said, meant),
            "errors": (said - meant).square().sum(0),
            "spearman": spearman,
        }

    def metrics(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Return both correlations, the error and the loss."""
        count = float(sums["num_examples"])
        squares = sums["errors"] / count
        return {
            "pearson": float(correlation(sums).mean()),
            "spearman": float(sums["spearman"].mean()) / count,
            "rmse": float(squares.sqrt().mean()),
            "loss": float(squares.mean()),
            "num_examples": int(count),
        }

    def said(
        self, logits: Tensor, example: Example, labels: Sequence[str], text: str
    ) -> dict[str, Any]:
        """Return the number that each output is."""
        return {"values": dict(zip(labels, logits.double().tolist(), strict=True))}


def as_values(rows: Tensor) -> Tensor:
    """Return the numbers `(n,)` that the odds of two outcomes `(n, 2)` stand for."""
    wide = rows if rows.dtype == torch.float64 else rows.float()
    return wide[:, 1] - wide[:, 0]


def moments(said: Tensor, meant: Tensor) -> dict[str, Tensor]:
    """Return the sums over rows of two sides `(n, …)`, of their squares and of their products."""
    return {
        "rows": torch.tensor(len(said), dtype=torch.float64),
        "said": said.sum(0),
        "meant": meant.sum(0),
        "said_squares": said.square().sum(0),
        "meant_squares": meant.square().sum(0),
        "products": (said * meant).sum(0),
    }


def correlation(sums: Mapping[str, Tensor]) -> Tensor:
    """Return Pearson's correlation by the `moments` of two sides; 0 where one is always the same."""
    rows, spread = sums["rows"], []
    for side in ("said", "meant"):
        square = sums[f"{side}_squares"]
        found = square - sums[side].square() / rows
        spread.append(found.where(found > ROUNDING * square, torch.zeros_like(found)))
    both = sums["products"] - sums["said"] * sums["meant"] / rows
    size = (spread[0] * spread[1]).sqrt()
    found = both / size.where(size > 0, torch.ones_like(size))
    return found.where(size > 0, torch.zeros_like(found)).clamp(-1, 1)


def ranks(values: Tensor) -> Tensor:
    """Return the rank of each of `(n,)` values; equal ones share the mean of theirs."""
    ordered = values.sort().values
    below, through = (torch.searchsorted(ordered, values, right=right) for right in (False, True))
    return (below + through + 1).to(values) / 2
