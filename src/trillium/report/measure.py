"""What a measure is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from trillium.report.read import Run

MAIN: Final = (
    "accuracy",
    "f1_micro",
    "pearson",
    "entity_f1",
    "exact_match",
    "token_accuracy",
    "reward_accuracy",
)
"""By what the models of a task are compared: the first that there is; more is better."""
QUALITY: Final = (
    "accuracy",
    "f1_micro",
    "f1_macro",
    "pearson",
    "spearman",
    "rmse",
    "entity_f1",
    "entity_precision",
    "entity_recall",
    "exact_match",
    "chrf",
    "bleu",
    "rouge_l",
    "perplexity",
    "token_accuracy",
    "reward_accuracy",
    "reward_margin",
    "loss",
)
"""How good a model is, in the order of tables and cards."""

Show = Callable[[float, float | None], str]
"""Writes a mean and its deviation for people."""


@dataclass(frozen=True)
class Measure:
    """One measure: `of` takes it from a run, `show` writes it.

    `name` is the column of the CSV file, `short` the column of the terminal, `title` the axis.
    """

    name: str
    short: str
    title: str
    definition: str
    of: Callable[[Run], float | None]
    show: Show
