"""What tasks of language models have in common: prompts, and which logits count."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from torch import Tensor

from trillium.tasks import IGNORE, Example, Task
from trillium.tasks.chats import answer_tokens, prompt_tokens
from trillium.tasks.spans import Spans
from trillium.tasks.writing import Decoding


class LanguageTask(Task):
    """A way to fine-tune a model that writes.

    Attributes:
        decoding: how text is written, in measures and by `trillium generate` and `predict`: `greedy`,
            the most probable token each time; or as the `checkpoint`'s `generation_config.json` says
            (beams, penalties, suppressed tokens, sampling), which no cut model can.
    """

    decoding: Decoding = "greedy"

    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    peft_task: ClassVar[str] = "CAUSAL_LM"
    per_token: ClassVar[bool] = True

    def chats(self, columns: Collection[str]) -> bool:
        """Whether rows of these columns are chats."""
        return "messages" in columns

    def prompt_tokens(self, prompt: str, tokenizer: Any, *, chat: bool) -> list[int]:
        """Return the tokens from which a text is written on, as they are in training.

        Of a chat, the prompt is what the user says first.
        """
        if chat:
            return prompt_tokens(tokenizer, prompt)
        return plain_prompt(prompt, tokenizer)

    def prompt_of(self, row: Mapping[str, Any], tokenizer: Any, *, chat: bool) -> list[int]:
        """Return the tokens from which the answer to a row is written.

        Of `messages` they are all turns; an answer of the assistant at their end is left out.

        Args:
            chat: whether a `prompt` is what the user of a chat says.
        """
        if "messages" not in row:
            return self.prompt_tokens(row["prompt"], tokenizer, chat=chat)
        return answer_tokens(tokenizer, row)

    def unlabelled(self, example: Example) -> Example:
        """Return it whole: its labels say which tokens the response is."""
        return example

    def select(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits at t with the label at t + 1, where that label is supervised."""
        targets = labels[:, 1:]
        counted = targets != IGNORE
        return logits[:, :-1][counted], targets[counted]


def pair_spans(prompt: str, completion: str, tokenizer: Any) -> Spans:
    """Tokenise prompt and completion apart, so that the border between them is a token border."""
    end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    answer = tokenizer(completion, add_special_tokens=False)["input_ids"]
    return [(plain_prompt(prompt, tokenizer), False), (answer + end, True)]


def plain_prompt(prompt: str, tokenizer: Any) -> list[int]:
    """Return the tokens of a prompt behind that which begins a text."""
    start = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
    tokens: list[int] = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    return start + tokens
