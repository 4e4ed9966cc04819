"""The data of a plan: that of a run, or what is assumed of data that nobody has looked at."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel, ConfigDict, Field

from trillium.config.experiment import ExperimentConfig
from trillium.federation.tiers import tier_of
from trillium.tasks import IGNORE, Example, Task

if TYPE_CHECKING:
    from datasets import Dataset


TOKENS = 64  # of a text that nobody has looked at


class Assumptions(BaseModel):
    """What a plan assumes of the data.

    Attributes:
        examples: of each client.
        tokens: of every example; `training.max_length` by default, or 64.
        response: of these the supervised ones, in language modelling; half of them by default.
        classes: to tell apart; outputs of the task head in other tasks that have one.
        token_bytes: of the text of a token; the public set crosses as text.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    examples: int = Field(default=1000, ge=1)
    tokens: int | None = Field(default=None, ge=2)
    response: int | None = Field(default=None, ge=1)
    classes: int = Field(default=2, ge=2)
    token_bytes: float = Field(default=4.5, gt=0)


@dataclass(frozen=True)
class Texts:
    """Tokenised examples, of which a plan reads lengths and how many predictions count.

    Attributes:
        clients: by name; clients that hold equal data may share one list.
        public: the public set, as the server holds it.
        num_classes: 0 for language modelling.
        assumed: whether nobody has looked at the data.
        token_bytes: of the text of a token, where there is no text.
        rows: the public set as text.
        public_of: the public set in the tokens of those clients whose model is not the server's.
        written: FLOPs that the server has spent on writing the public set.
        test: held-out examples, where there are any.
        held: those that clients measure on, by name, where they do and it is known.
        tokenizers: of the server under `None`, and of clients, where they are known.
        dialects: by client, what it speaks instead of what the server does.
    """

    clients: Mapping[str, list[Example]]
    public: list[Example]
    num_classes: int
    assumed: bool = False
    token_bytes: float = 0.0
    rows: Dataset | None = None
    public_of: Mapping[str, list[Example]] = field(default_factory=dict)
    written: float = 0.0
    test: list[Example] = field(default_factory=list)
    tokenizers: Mapping[str | None, Any] = field(default_factory=dict)
    dialects: Mapping[str, Any] = field(default_factory=dict)
    held: Mapping[str, list[Example]] = field(default_factory=dict)

    @property
    def public_rows(self) -> Any:
        """The public set as text; where there is none, in as many characters as are assumed."""
        if self.rows is not None:
            return self.rows
        sizes = [(e.prompt_tokens, e.num_tokens - e.prompt_tokens) for e in self.public]
        columns = [
            ["x" * round(self.token_bytes * n) for n in column]
            for column in zip(*sizes, strict=True)
        ]
        if self.num_classes:
            return Table(text=columns[1], label=[0] * len(sizes)) if sizes else Table(text=[])
        return (
            Table(prompt=columns[0], completion=columns[1])
            if sizes
            else Table(prompt=[], completion=[])
        )


class Table(dict[str, list[Any]]):
    """Columns of a table, as a data set has them."""

    @property
    def column_names(self) -> list[str]:
        """The names of the columns."""
        return list(self)


def by_tier(config: ExperimentConfig, names: Iterable[str]) -> Mapping[str, list[str]]:
    """Return client names by the label of their tier; `all` for those of none."""
    labels = {id(tier): label for label, tier in config.tiers.items()}
    found: dict[str, list[str]] = defaultdict(list)
    for name in names:
        found[labels.get(id(tier_of(config.tiers, name)), "all")].append(name)
    return dict(found)


@lru_cache(maxsize=16)
def _alike(task: Task, count: int, length: int, prompt: int, classes: int) -> list[Example]:
    """Return examples of one length, supervised behind a prompt; or of the classes in turn.

    They differ in their first token: of samples that are alike, activations cross once.
    """
    tokens = torch.ones(length, dtype=torch.int64)
    first = torch.arange(length) == 0
    labels = [tokens.masked_fill(torch.arange(length) < prompt, IGNORE)]
    if task.per_token and not prompt:
        labels = [torch.full((length,), label) for label in range(classes)]
    elif not task.per_token:
        each = classes if task.has_classes else 1
        shape = () if task.has_classes else (1, classes)
        numbers = [torch.full(shape, number, dtype=torch.int32) for number in range(each)]
        labels = [task.from_numbers(own, classes) for own in numbers]
    texts = [
        Example(i, tokens.masked_fill(first, i), labels[i % len(labels)], prompt)
        for i in range(count)
    ]
    return [replace(text, rejected=text) for text in texts] if task.compares else texts


def assumed_texts(config: ExperimentConfig, assumed: Assumptions) -> Texts:
    """Return examples of one length for all clients, and for the public set."""
    classifies = config.task.peft_task != "CAUSAL_LM"
    bounds = [b for b in (assumed.tokens, config.training.max_length) if b is not None]
    length = min(bounds, default=TOKENS)
    response = min(assumed.response or -(-length // 2), length - 1)
    prompt = 0 if classifies else length - response
    own = {"length": length, "prompt": prompt, "classes": assumed.classes}
    texts = partial(_alike, config.task, **own)
    rows = texts(assumed.examples)
    return Texts(
        clients=dict.fromkeys(config.data.names(), rows),
        public=texts(config.public_size),
        num_classes=assumed.classes if classifies else 0,
        assumed=True,
        token_bytes=assumed.token_bytes,
    )
