"""Causal language modelling: prompt and completion, or chat; loss on the response only."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from trillium.errors import UserError
from trillium.rng import scoped_rng
from trillium.tasks import IGNORE, Example, Measured, View
from trillium.tasks.batches import spans
from trillium.tasks.chats import chat_spans
from trillium.tasks.ends import before_end, end_ids
from trillium.tasks.language import LanguageTask, pair_spans
from trillium.tasks.scores import TEXT_SCORES, text_scores
from trillium.tasks.spans import Spans
from trillium.tasks.vocabulary import logits_of
from trillium.tasks.writing import write_whole

if TYPE_CHECKING:
    from datasets import Dataset

SHOWN = 6  # prompts with their answers, in a report


class CausalLM(LanguageTask, name="causal_lm"):
    """Predict the tokens of a response from those before them.

    Rows hold `prompt` and `completion`, or `messages` in the chat form, where every turn of the
    assistant is supervised and the tokenizer's chat template sets the text (`trillium.tasks.chats`).

    Metrics: `loss` (mean over response tokens, nats), `perplexity` (its exponential),
    `token_accuracy` (teacher-forced), and, of greedy generations where `generate` > 0, `exact_match`,
    `chrf`, `bleu` and `rouge_l` (`trillium.tasks.scores`).

    Attributes:
        generate: how many held-out prompts to answer, for these measures; 0 for none.
        max_new_tokens: longest generated answer.
    """

    generate: int = Field(default=0, ge=0)
    max_new_tokens: int = Field(default=32, ge=1)

    data_form: ClassVar[str] = "causal_lm"
    tallied: ClassVar[Mapping[str, bool]] = dict.fromkeys(("loss", "hits", "tokens"), False)

    @property
    def told(self) -> Mapping[str, bool]:
        """Of written texts their scores, too."""
        written = ("answered", *TEXT_SCORES) if self.generate else ()
        return {**self.tallied, **dict.fromkeys(written, False)}

    @property
    def measure(self) -> str:
        """The exact match of answers, where some are generated."""
        return "exact_match" if self.generate else "loss"

    def tokenize(
        self, rows: Dataset, tokenizer: Any, max_length: int | None, num_outputs: int = 0
    ) -> list[Example]:
        """Tokenise the columns `prompt` and `completion`, or `messages`; a chat may be several."""
        chats = "messages" in rows.column_names
        return [
            _example(index, pieces, max_length)
            for index, pieces in enumerate(
                pieces
                for row in rows
                for pieces in (
                    chat_spans(row, tokenizer)
                    if chats
                    else [pair_spans(row["prompt"], row["completion"], tokenizer)]
                )
            )
        ]

    def num_supervised(self, labels: Tensor) -> int:
        """The response tokens but for one at the very start, which nothing predicts."""
        return int((labels[:, 1:] != IGNORE).sum())

    def num_targets(self, example: Example) -> int:
        """The supervised tokens."""
        return example.num_predicted

    def observe(self, view: View) -> dict[str, Tensor]:
        """Return the loss, how many tokens there are, and how many are right."""
        rows, targets = self.select(view.output, view.labels)
        chunks = [(slice(None), rows)] if view.head is None else logits_of(view.head, rows)
        found = rows.new_zeros(2, dtype=torch.float64)
        for some, logits in chunks:
            own = targets[some]
            loss = self.error(logits, own)
            found += torch.stack([loss.double(), (logits.argmax(-1) == own).sum().double()])
        tokens = torch.full_like(found[:1], len(targets))
        return {"loss": found[:1], "hits": found[1:], "tokens": tokens}

    def tally(
        self,
        module: nn.Module,
        examples: Sequence[Example],
        tokenizer: Any,
        batch_tokens: int,
        measured: Measured = lambda batch, work: work(),
    ) -> dict[str, Tensor]:
        """Return the sums over tokens; of texts that are written, their scores times their number."""
        found = super().tally(module, examples, tokenizer, batch_tokens, measured)
        if not self.generate:
            return found
        asked = examples[: self.generate]
        pairs = [*self._answered(module, asked, tokenizer, batch_tokens)]
        count = sum(bool(meant) for _, meant in pairs)
        scores = {name: count * score for name, score in text_scores(pairs).items()}
        told = {"answered": float(count), **scores}
        return {**found, **{n: torch.tensor(v, dtype=torch.float64) for n, v in told.items()}}

    def metrics(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Return loss, perplexity, token accuracy and, if asked for, the measures of written texts."""
        num_examples, count = int(sums["num_examples"]), float(sums["tokens"])
        if not count:
            raise UserError(
                f"{num_examples} held-out examples",
                "none has a supervised token, so nothing can be measured",
                "Look at the columns that are named, or write a longer training.max_length",
            )
        mean = float(sums["loss"]) / count
        metrics = {
            "loss": mean,
            "perplexity": math.exp(min(mean, 700.0)),
            "token_accuracy": float(sums["hits"]) / count,
            "num_examples": num_examples,
        }
        if self.generate:
            answered = max(float(sums["answered"]), 1.0)
            metrics |= {name: float(sums[name]) / answered for name in TEXT_SCORES}
        return metrics

    @torch.inference_mode()
    def _answered(
        self, module: nn.Module, examples: Sequence[Example], tokenizer: Any, batch_tokens: int
    ) -> Iterator[tuple[str, str]]:
        """Yield what a model answers to each example, and what it should."""
        ends, device = end_ids(tokenizer, module), next(module.parameters()).device
        lengths = [example.prompt_tokens + self.max_new_tokens for example in examples]
        for place in spans(lengths, batch_tokens):
            chunk = examples[place]
            prompts = [example.input_ids[: example.prompt_tokens].tolist() for example in chunk]
            with scoped_rng(0, "answers"):  # a checkpoint may want to draw
                answers = write_whole(
                    module,
                    tokenizer,
                    device,
                    prompts,
                    decoding=self.decoding,
                    max_new_tokens=self.max_new_tokens,
                )
            for example, answer in zip(chunk, answers, strict=True):
                # Only the first response counts; later turns of a chat are supervised but not written.
                wanted = takewhile(
                    lambda label: label != IGNORE, example.labels[example.prompt_tokens :].tolist()
                )
                said, meant = before_end(answer, ends), before_end([*wanted], ends)
                yield _text(tokenizer, said), _text(tokenizer, meant)

    @torch.inference_mode()
    def answers(
        self, module: nn.Module, examples: list[Example], tokenizer: Any, batch_tokens: int
    ) -> dict[str, Any]:
        """Return the first prompts, where any are answered, with what is meant and what is said."""
        found, shown = [], examples[: min(self.generate, SHOWN)]
        answered = self._answered(module, shown, tokenizer, batch_tokens)
        for example, (said, meant) in zip(shown, answered, strict=True):
            prompt = _text(tokenizer, example.input_ids[: example.prompt_tokens].tolist())
            found.append({"prompt": prompt, "reference": meant, "answer": said})
        return {"texts": found} if found else {}


def _text(tokenizer: Any, tokens: list[int]) -> str:
    return str(tokenizer.decode(tokens, skip_special_tokens=True)).strip()


def _example(index: int, spans: Spans, max_length: int | None) -> Example:
    """Return tokens as an example that is cut to a length."""
    tokens = [token for piece, _ in spans for token in piece]
    labels = [t if seen else IGNORE for piece, seen in spans for t in piece]
    prompt = next((at for at, label in enumerate(labels) if label != IGNORE), len(tokens))
    kept = range(len(tokens)) if max_length is None else _kept(len(tokens), prompt, max_length)
    return Example(
        index,
        torch.tensor(tokens, dtype=torch.int64)[[*kept]],
        torch.tensor(labels, dtype=torch.int64)[[*kept]],
        sum(at < prompt for at in kept),
    )


def _kept(length: int, prompt: int, most: int) -> list[int]:
    """Return which tokens are kept of a text that is too long.

    Without a response nothing is learnt, and without what was asked nothing of use: the prompt is cut
    first, behind its first token, down to half of the room, and then the response at its end.
    """
    drop = min(max(0, length - most), max(0, prompt - max(most // 2, 1)))
    start = min(prompt, 1)  # what begins every text
    return [*range(start), *range(start + drop, length)][:most]
