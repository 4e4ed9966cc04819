"""Texts that a causal language model writes: samples of what it takes language to be.

LLM-QAT (Liu et al., 2023, arXiv 2305.17888) distils on samples of the model itself where there are no
data. FDKT (Li et al., 2024, arXiv 2405.14212) writes the data of a federation with a generator trained
under differential privacy; here nobody trains one, so nothing private is in the texts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import nn

from trillium.data.publics import Public, Row
from trillium.errors import UserError
from trillium.models.base import ModelConfig, load_base
from trillium.models.inputs import read_inputs
from trillium.models.load import LanguageModel
from trillium.rng import scoped_rng
from trillium.tasks import Task
from trillium.tasks.ends import before_end, end_ids
from trillium.tasks.writing import write_whole
from trillium.training.meters import Meter, resident_tensors


@dataclass(frozen=True)
class Author:
    """A causal language model that writes."""

    module: nn.Module
    tokenizer: Any
    device: torch.device


class Sampled(Public, name="sampled"):
    """Let a causal language model write, token by token, each drawn from its own distribution.

    In language modelling a row has the prompt that the model was given, or an empty one, and what it
    wrote as the completion.

    Attributes:
        model: hub id or folder of the model that writes; by default the server's own, as it was
            loaded. A classifier cannot write, so classification needs one.
        prompts: prompts that the texts continue, in turn; without any, the model begins by itself.
        temperature: divides the logits; below 1 texts are likelier and more alike.
        top_k: draw from so many most probable tokens; null is from all.
        max_new_tokens: longest text.
        batch_size: texts at once; another one gives other texts.
    """

    model: str | None = None
    prompts: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    temperature: float = Field(default=1.0, gt=0)
    top_k: int | None = Field(default=None, ge=1)
    max_new_tokens: int = Field(default=48, ge=1)
    batch_size: int = Field(default=32, ge=1)

    def check(self, task: Task) -> None:
        """Refuse to let a classifier write."""
        if self.model is None and task.peft_task != "CAUSAL_LM":
            raise UserError(
                f"data.public={self.name} with task={task.name}",
                "the model of the run is a classifier, which cannot write",
                "Name a causal language model in data.public.model, or write data.public=words",
            )

    def write(
        self, task: Task, base: ModelConfig, model: LanguageModel, seed: int, meter: Meter
    ) -> Iterator[list[Row]]:
        """Yield what the model writes, a batch at a time."""
        author = self._author(base, model)
        prompts = self.prompts or ("",)
        tokens = [_tokens(author.tokenizer, prompt) for prompt in prompts]
        is_lm = task.peft_task == "CAUSAL_LM"
        number = 0
        while True:
            first = number * self.batch_size
            turns = [index % len(prompts) for index in range(first, first + self.batch_size)]
            resident = lambda: resident_tensors(author.module)  # noqa: E731
            # Texts end when they will, so that no batch costs what another one does.
            with (
                scoped_rng(seed, "public", self.name, number),
                meter.measure(("public", number), resident),
            ):
                texts = self._texts(author, [tokens[turn] for turn in turns])
            pairs = zip(turns, texts, strict=True)
            yield [
                {"prompt": prompts[turn], "completion": text} if is_lm else {"text": text.strip()}
                for turn, text in pairs
            ]
            number += 1

    def _author(self, base: ModelConfig, model: LanguageModel) -> Author:
        if self.model is None:
            return Author(model.mount(model.state()).eval(), model.tokenizer, model.device)
        changes = {"id": self.model, "revision": None, "random_weights": False}
        wanted = base.model_copy(update=changes)
        given = f"data.public.model={self.model}"
        try:
            inputs = read_inputs(wanted, ())
            module, _ = load_base(wanted, "AutoModelForCausalLM", inputs.hf_config, model.device)
        except UserError as error:
            raise UserError(given, error.why, error.instead) from error
        return Author(module.to(model.device).eval(), inputs.tokenizer, model.device)

    def _texts(self, author: Author, prompts: list[list[int]]) -> list[str]:
        found = write_whole(
            author.module,
            author.tokenizer,
            author.device,
            prompts,
            do_sample=True,
            temperature=self.temperature,
            top_k=self.top_k or 0,
            top_p=1.0,
            max_new_tokens=self.max_new_tokens,
        )
        ends = end_ids(author.tokenizer, author.module)
        said = [before_end(tokens, ends) for tokens in found]
        texts: list[str] = author.tokenizer.batch_decode(said, skip_special_tokens=True)
        return texts


def _tokens(tokenizer: Any, prompt: str) -> list[int]:
    """Return what the model is given for a prompt, the same as when it is trained on it."""
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    tokens: list[int] = start + tokenizer(prompt, add_special_tokens=False)["input_ids"]
    if not tokens and tokenizer.eos_token_id is not None:
        return [tokenizer.eos_token_id]  # what ends a text stands before the next one
    if not tokens:
        raise UserError(
            "data.public=sampled without prompts",
            "the tokenizer of the model has no token that begins a text",
            "Write some data.public.prompts",
        )
    return tokens
