"""Texts of random words: nonsense, of which a fine-tuned model still has something to say.

Krishna et al., "Thieves on Sesame Street! Model Extraction of BERT-based APIs" (2020, arXiv
1910.12366), copy classifiers by what they say of such texts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from pydantic import Field, model_validator

from trillium.data.publics import Public, Row
from trillium.errors import UserError
from trillium.models.base import ModelConfig
from trillium.models.load import LanguageModel
from trillium.rng import derive_seed
from trillium.tasks import Task
from trillium.training.meters import Meter

BATCH = 64  # texts at once


class Words(Public, name="words"):
    """Draw each word by itself, all whole words of the tokenizer's vocabulary equally likely.

    In language modelling prompt and completion are two such texts.

    Attributes:
        shortest, longest: words of a text; each length between them is equally likely.
    """

    shortest: int = Field(default=4, ge=1)
    longest: int = Field(default=16, ge=1)

    @model_validator(mode="after")
    def _in_order(self) -> Words:
        if self.shortest > self.longest:
            raise UserError(
                f"shortest: {self.shortest} with longest: {self.longest}",
                "no length is at least shortest and at most longest",
                "Write a longest of at least shortest",
            )
        return self

    def write(
        self, task: Task, base: ModelConfig, model: LanguageModel, seed: int, meter: Meter
    ) -> Iterator[list[Row]]:
        """Yield rows of random words; no model computes anything."""
        words = whole_words(model.tokenizer)
        if not words:
            raise UserError(
                f"data.public={self.name} with model.id={base.id}",
                "no token of its tokenizer is a whole word",
                "Write data.public=rows, or data.public=sampled",
            )
        fields = ("prompt", "completion") if task.peft_task == "CAUSAL_LM" else ("text",)
        draw = np.random.default_rng(derive_seed(seed, "public", self.name))
        while True:
            yield [{name: self._text(words, draw) for name in fields} for _ in range(BATCH)]

    def _text(self, words: list[str], draw: np.random.Generator) -> str:
        length = draw.integers(self.shortest, self.longest, endpoint=True)
        return " ".join(words[index] for index in draw.integers(len(words), size=length))


def whole_words(tokenizer: Any) -> list[str]:
    """Return the words of letters and digits that are one token in running text, by token id.

    How tokenizers mark where a word begins differs. So each candidate is put behind another word, and
    counts if it comes back as the one token that it was.
    """
    special = {*tokenizer.all_special_ids}
    tokens = [token for token in range(len(tokenizer)) if token not in special]
    texts = [text.strip() for text in tokenizer.batch_decode([[token] for token in tokens])]
    found = [(text, token) for text, token in zip(texts, tokens, strict=True) if text.isalnum()]
    if not found:
        return []
    lines = ["a", *(f"a {text}" for text, _ in found)]
    before, *encoded = tokenizer(lines, add_special_tokens=False)["input_ids"]
    pairs = zip(found, encoded, strict=True)
    return [text for (text, token), ids in pairs if ids == [*before, token]]
