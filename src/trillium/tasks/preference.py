"""Direct Preference Optimization (Rafailov et al., 2023, arXiv 2305.18290): of two answers to a prompt
the better one is to become more probable.

The reference is the same model with its adapter off, so no second model is held: each batch goes
through it twice, once without gradients.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from trillium.errors import UserError
from trillium.tasks import IGNORE, Adjustment, Batch, Example, View
from trillium.tasks.chats import chat_spans
from trillium.tasks.language import LanguageTask, pair_spans
from trillium.tasks.spans import Spans
from trillium.tasks.vocabulary import logits_of

if TYPE_CHECKING:
    from datasets import Dataset


class Preference(LanguageTask, name="preference"):
    """Prefer the chosen answer to the rejected one, by DPO's loss.

    Rows hold `prompt`, `chosen` and `rejected`, or two chats as `chosen` and `rejected`. The reward of
    an answer is `beta` times what the logarithm of its probability (nats) has gained over the
    reference, and the loss `-log sigmoid(reward of the chosen - reward of the rejected)`, equation 7 of
    the paper. Prompt and answer are cut at their end to `training.max_length`, as TRL's `keep_start`
    does.

    Metrics, all means over pairs: `reward_accuracy` (share of the pairs whose chosen answer has the
    larger reward; 0 before training, when all are zero), `reward_margin` (chosen minus rejected),
    `reward_chosen`, `reward_rejected` and `loss` (nats).

    Attributes:
        beta: how dear it is to move away from the reference.
    """

    beta: float = Field(default=0.1, gt=0)

    data_form: ClassVar[str] = "preference"
    compares: ClassVar[bool] = True
    tallied: ClassVar[Mapping[str, bool]] = dict.fromkeys(
        ("reward_accuracy", "reward_margin", "reward_chosen", "reward_rejected", "loss"), False
    )
    signed: ClassVar[frozenset[str]] = frozenset(
        {"reward_margin", "reward_chosen", "reward_rejected"}
    )

    @property
    def measure(self) -> str:
        """The share of pairs that are ordered as they should be."""
        return "reward_accuracy"

    def tokenize(
        self, rows: Dataset, tokenizer: Any, max_length: int | None, num_outputs: int = 0
    ) -> list[Example]:
        """Tokenise the columns `prompt`, `chosen` and `rejected`, or two chats."""
        found = []
        for index, row in enumerate(rows):
            chosen, rejected = (
                _text(index, _spans(row, which, tokenizer), max_length)
                for which in ("chosen", "rejected")
            )
            found.append(replace(chosen, rejected=rejected))
        return found

    def chats(self, columns: Any) -> bool:
        """Whether rows of these columns are chats."""
        return "prompt" not in columns

    def num_supervised(self, labels: Tensor) -> int:
        """The pairs."""
        return len(labels) // 2

    def num_rows(self, labels: Tensor) -> int:
        """The tokens of all answers."""
        return int((labels[:, 1:] != IGNORE).sum())

    def most_targets(self, max_length: int, num_outputs: int) -> int:
        """One."""
        return 1

    def num_targets(self, example: Example) -> int:
        """One, if something is left of both answers."""
        return int(all(text.num_predicted for text in example.texts))

    @torch.no_grad()
    def reference(self, module: nn.Module, batch: Batch) -> Tensor:
        """Return what the model without its adapter says of each answer, nats `(batch,)`."""
        with without_adapter(module):
            output, head = self.output(module, batch)
            return self.scores(output, batch.labels, head)

    @torch.no_grad()
    def scores(self, output: Tensor, labels: Tensor, head: nn.Module | None) -> Tensor:
        """Return the logarithm of the probability of each answer, nats `(batch,)`."""
        rows, targets = self.select(output, labels)
        places, found = _places(labels), rows.new_zeros(len(labels), dtype=_wide(rows))
        chunks = [(slice(None), rows)] if head is None else logits_of(head, rows)
        for some, logits in chunks:
            found = found.index_add(0, places[some], _log_probabilities(logits, targets[some]))
        return found

    def loss(
        self,
        output: Tensor,
        labels: Tensor,
        head: nn.Module | None = None,
        adjustment: Adjustment | None = None,
        reference: Tensor | None = None,
    ) -> tuple[Tensor, int]:
        """Return the loss summed over the pairs, nats, and their number.

        No logits of a whole batch are kept: how the loss depends on the probability of each answer is
        known before its gradient is taken, and what remains is a weighted sum over tokens.
        """
        assert reference is not None, "the loss is against a reference"
        margins = self._margins(self.scores(output, labels, head), reference)
        slopes = -self.beta * torch.sigmoid(-margins)
        weights = torch.stack([slopes, -slopes], 1).flatten()[_places(labels)]

        def part(logits: Tensor, targets: Tensor, at: slice) -> Tensor:
            return (weights[at] * _log_probabilities(logits, targets)).sum()

        rows, targets = self.select(output, labels)
        moved = self.total(rows, targets, head, part)
        value = -functional.logsigmoid(margins).sum()
        return moved + (value - moved).detach(), len(margins)

    def _margins(self, scores: Tensor, reference: Tensor) -> Tensor:
        """Return the reward of the chosen answer minus that of the rejected one, `(pairs,)`."""
        rewards = self.beta * (scores - reference)
        return rewards[0::2] - rewards[1::2]

    def observe(self, view: View) -> dict[str, Tensor]:
        """Return the loss, the rewards, and how often the chosen answer has the larger one."""
        assert view.reference is not None, "rewards are against a reference"
        gained = self.scores(view.output, view.labels, view.head) - view.reference
        chosen, rejected = (self.beta * gained).view(-1, 2).double().unbind(1)
        margins = chosen - rejected
        return {
            "reward_accuracy": (margins > 0).double(),
            "reward_margin": margins,
            "reward_chosen": chosen,
            "reward_rejected": rejected,
            "loss": -functional.logsigmoid(margins),
        }

    def metrics(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Return how often, and by how much, the chosen answer has the larger reward."""
        count = int(sums["num_examples"])
        return {
            **{name: float(total) / count for name, total in sums.items()},
            "num_examples": count,
        }


@contextmanager
def without_adapter(module: nn.Module) -> Iterator[None]:
    """Let a model, or a part of one, answer as it does without its adapter, and without dropout.

    PEFT's own switch also says which tensors train, and would let those train that a mask has frozen.
    """
    kinds = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    layers: list[Any] = [layer for layer in module.modules() if isinstance(layer, kinds)]
    was_training = module.training
    module.eval()
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False
        module.train(was_training)


def _spans(row: Mapping[str, Any], which: str, tokenizer: Any) -> Spans:
    """Return the tokens of a prompt and of one of its answers."""
    if "prompt" in row:
        return pair_spans(row["prompt"], row[which], tokenizer)
    found = chat_spans({**row, "messages": row[which]}, tokenizer)
    if len(found) > 1:
        raise UserError(
            f"{row.get('row') or 'a row'}, whose {which} has {len(found)} turns of the assistant",
            "the chat template says earlier turns otherwise once others follow, so that they are "
            "no single text that could be preferred",
            "Leave one turn of the assistant behind the prompt, or choose another model",
        )
    return found[0]


def _text(index: int, spans: Spans, max_length: int | None) -> Example:
    tokens = [token for piece, _ in spans for token in piece]
    labels = [token if seen else IGNORE for piece, seen in spans for token in piece]
    prompt = next((at for at, label in enumerate(labels) if label != IGNORE), len(tokens))
    kept = len(tokens) if max_length is None else min(max_length, len(tokens))
    ids, wanted = (torch.tensor(found[:kept], dtype=torch.int64) for found in (tokens, labels))
    return Example(index, ids, wanted, min(prompt, kept))


def _places(labels: Tensor) -> Tensor:
    """Return of which text each token is that `select` takes."""
    return (labels[:, 1:] != IGNORE).nonzero()[:, 0]


def _log_probabilities(logits: Tensor, targets: Tensor) -> Tensor:
    return -functional.cross_entropy(logits.to(_wide(logits)), targets, reduction="none")


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
