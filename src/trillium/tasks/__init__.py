"""Tasks: what an example is, which predictions count, and how good they are.

Imports the ground alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from trillium.component import Component
from trillium.errors import UserError
from trillium.tasks.vocabulary import hidden_states, is_wide, logits_of, summed

if TYPE_CHECKING:
    from datasets import Dataset

IGNORE = -100  # PyTorch's label for a position without supervision
Adjustment = Callable[[Tensor], Tensor]
"""Gives, for logits `(…, classes)`, what is added to them in training."""
Part = Callable[[Tensor, Tensor, slice], Tensor]
"""Gives the summed loss of some predictions from their logits, their targets, and which they are."""


@dataclass(frozen=True)
class Example:
    """One tokenised example.

    Attributes:
        index: its number among all that were tokenised with it.
        input_ids: token ids `(seq,)`, int64.
        labels: the class `()`, a value for each output `(1, outputs)`, or a label for each token
            `(seq,)`; `IGNORE` where nothing is supervised.
        prompt_tokens: how many tokens a generation starts from; 0 where none does.
        words: where in the text the words stand that have a label, where words have.
        rejected: the text that is worse than this one, where texts are compared.
        known: gives what a model's first blocks make of it, `(seq, width)`, where that is kept.
    """

    index: int
    input_ids: Tensor
    labels: Tensor
    prompt_tokens: int = 0
    words: tuple[tuple[int, int], ...] = ()
    rejected: Example | None = None
    known: Callable[[], Tensor] | None = None

    @property
    def texts(self) -> tuple[Example, ...]:
        """It, with the text that it is compared with; each is a row of a batch."""
        return (self,) if self.rejected is None else (self, self.rejected)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle it as arrays, which takes a twentieth of the time of tensors."""
        ids, labels = self.input_ids.numpy(), self.labels.numpy()
        return _example, (self.index, ids, labels, self.prompt_tokens, self.words, self.rejected)

    @cached_property
    def num_tokens(self) -> int:
        """How long it is, or the longer of its texts."""
        return max(text.input_ids.shape[0] for text in self.texts)

    @cached_property
    def num_predicted(self) -> int:
        """How many supervised tokens have one in front, from which they can be predicted."""
        return int((self.labels[1:] != IGNORE).sum())


def _example(index: int, ids: Any, labels: Any, *rest: Any) -> Example:
    return Example(index, torch.tensor(ids), torch.tensor(labels), *rest)


@dataclass(frozen=True)
class Batch:
    """A padded batch.

    Attributes:
        input_ids: `(batch, seq)` int64; texts that are compared are rows beside each other.
        attention_mask: `(batch, seq)` int64, 0 where padded.
        labels: `(batch,)`, `(batch, 1, outputs)` or `(batch, seq)`; `IGNORE` where there is none.
        indices: number of each example among those it comes from.
        known: what the model's first blocks make of it, `(batch, seq, width)`, if that is known.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    indices: tuple[int, ...]
    known: Tensor | None = None

    @property
    def layout(self) -> tuple[int, int, bool, bool]:
        """`(batch, seq)`, whether there is padding, and whether the first blocks are done with it.

        That is what FLOPs and memory of a model depend on. Models leave the attention mask away where
        it would mask nothing.
        """
        rows, length = self.input_ids.shape
        return rows, length, not bool(self.attention_mask.all()), self.known is not None

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What the model's forward takes."""
        found = {"input_ids": self.input_ids, "attention_mask": self.attention_mask}
        return found if self.known is None else {**found, "known": self.known}


@dataclass(frozen=True)
class View:
    """What there is to see of a model on a batch.

    Attributes:
        output, labels, head, reference: as those of `Task.loss`.
        names: of the outputs.
    """

    output: Tensor
    labels: Tensor
    head: nn.Module | None = None
    reference: Tensor | None = None
    names: Mapping[int, str] = field(default_factory=dict)


Measured = Callable[[Batch, Callable[[], dict[str, Tensor]]], dict[str, Tensor]]
"""Does the work on a batch that measures a model, and may take note of what it costs."""


class Task(Component, kind="task", package="trillium.tasks"):
    """A way to fine-tune a language model.

    Class variables:
        auto_class: the class of Transformers that loads its models.
        peft_task: PEFT's name of it: `SEQ_CLS`, `TOKEN_CLS` or `CAUSAL_LM`.
        data_form: the columns that sources deliver (`trillium.data.sources`).
        problem_type: what Transformers calls the loss of a head on texts, where it has to be told.
        per_token: labels stand one at each token; else a text has one, or one for each output.
        has_classes: what counts is of one class each, so that classes have sizes and means.
        says_values: what is predicted are numbers; a row of outcomes says one by its log-odds.
        tallied: names of the counts and sums of `sums`, and whether each output has one of its own.
        signed: those of them that may be below zero.
    """

    auto_class: ClassVar[str]
    peft_task: ClassVar[str]
    data_form: ClassVar[str]
    problem_type: ClassVar[str | None] = None
    per_token: ClassVar[bool] = False
    has_classes: ClassVar[bool] = False
    says_values: ClassVar[bool] = False
    compares: ClassVar[bool] = False
    tallied: ClassVar[Mapping[str, bool]] = {}
    signed: ClassVar[frozenset[str]] = frozenset()

    @property
    def measure(self) -> str:
        """Return the metric by which one model is better than another."""
        return "loss"

    @property
    def told(self) -> Mapping[str, bool]:
        """Return what is told of held-out rows: `tallied`, and what the task's options add."""
        return self.tallied

    @property
    def num_texts(self) -> int:
        """Return how many rows of a batch an example is."""
        return 2 if self.compares else 1

    @property
    def more_is_better(self) -> bool:
        """Whether more of that metric is better."""
        return self.measure != "loss"

    def tokenize(
        self, rows: Dataset, tokenizer: Any, max_length: int | None, num_outputs: int = 0
    ) -> list[Example]:
        """Turn rows of the canonical columns into examples; longer ones are cut to `max_length`.

        Args:
            num_outputs: of the task head; 0 where the model has none of its own.
        """
        raise NotImplementedError

    def unlabelled(self, example: Example) -> Example:
        """Return an example without what its labels tell, but for which predictions count."""
        return replace(example, labels=torch.full_like(example.labels, IGNORE))

    def select(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the predictions that count, logits `(n, outcomes)`, and their targets `(n,)`.

        They are made of the same logits, `(batch, outputs)` or `(batch, seq, outputs)`, for everyone
        who holds the batch.
        """
        raise NotImplementedError

    def num_outcomes(self, num_outputs: int) -> int:
        """Return the width of the rows that `select` gives, by the last dimension of the logits."""
        return num_outputs

    def most_targets(self, max_length: int, num_outputs: int) -> int:
        """Return how many predictions of an example may count, at most."""
        return max_length if self.per_token else 1

    def predictions(self, module: nn.Module, batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield what `select` returns of a batch: at once, or some rows at a time of many classes."""
        if not is_wide(module):
            yield self.select(module(**batch.inputs).logits, batch.labels)
            return
        hidden, targets = self.select(hidden_states(module, batch.inputs), batch.labels)
        for rows, logits in logits_of(module, hidden):
            yield logits, targets[rows]

    def output(self, module: nn.Module, batch: Batch) -> tuple[Tensor, nn.Module | None]:
        """Return what a loss is computed from: logits, or what the head that is also returned sees."""
        if is_wide(module):
            return hidden_states(module, batch.inputs), module
        return module(**batch.inputs).logits, None

    def counted(self, module: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, nn.Module | None]:
        """Return what `select` takes of that output, with the targets and the head."""
        output, head = self.output(module, batch)
        return *self.select(output, batch.labels), head

    def total(self, rows: Tensor, targets: Tensor, head: nn.Module | None, part: Part) -> Tensor:
        """Return a loss summed over the predictions that count.

        Args:
            rows, targets, head: as `counted` returns them.
            part: gives the loss of some predictions, from logits, targets, and which rows they are.
        """
        if head is None:
            return part(rows, targets, slice(None))
        return summed(head, rows, lambda some, at: part(some, targets[at], at))

    def reference(self, module: nn.Module, batch: Batch) -> Tensor | None:
        """Return the `scores` of a batch by the model as it was before training, if they count."""
        return None

    def scores(self, output: Tensor, labels: Tensor, head: nn.Module | None) -> Tensor:
        """Return what a reference says of each text of a batch, `(batch,)`."""
        raise NotImplementedError

    def loss(
        self,
        output: Tensor,
        labels: Tensor,
        head: nn.Module | None = None,
        adjustment: Adjustment | None = None,
        reference: Tensor | None = None,
    ) -> tuple[Tensor, int]:
        """Return the summed cross-entropy (nats) of the supervised predictions, and how many.

        Args:
            output, head: as `output` returns them, or the last part of a cut model.
            adjustment: of the logits.
            reference: as `reference` returns it.
        """

        def part(logits: Tensor, targets: Tensor, _: slice) -> Tensor:
            return self.error(
                logits if adjustment is None else logits + adjustment(logits), targets
            )

        rows, targets = self.select(output, labels)
        return self.total(rows, targets, head, part), int(self.known(targets).sum())

    def error(self, rows: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of rows `(n, outcomes)`, summed over those of which the target is known."""
        wide = rows if rows.dtype == torch.float64 else rows.float()
        return functional.cross_entropy(wide, targets, reduction="sum", ignore_index=IGNORE)

    def known(self, labels: Tensor) -> Tensor:
        """Return which labels, or targets, say something, as bools."""
        return labels != IGNORE

    def as_numbers(self, labels: Tensor) -> Tensor:
        """Return labels as the whole numbers that cross, int32 of the same shape."""
        return labels.int()

    def from_numbers(self, numbers: Tensor, num_outputs: int) -> Tensor:
        """Return the labels that such numbers stand for.

        Raises:
            ValueError: some stand for none.
        """
        labels = numbers.long()
        most = self.num_outcomes(num_outputs) - 1
        if not bool(((labels == IGNORE) | ((labels >= 0) & (labels <= most))).all()):
            raise ValueError(f"labels outside 0 … {most}")
        return labels

    def adjustment(self, examples: Sequence[Example]) -> Adjustment | None:
        """Return what is added to logits in training on these examples, if anything."""
        return None

    def num_supervised(self, labels: Tensor) -> int:
        """Return how many predictions the labels of a batch supervise."""
        return int(self.known(labels).sum())

    def num_rows(self, labels: Tensor) -> int:
        """Return how many rows of the labels of a batch `select` takes, on which costs depend."""
        return self.num_supervised(labels)

    def num_targets(self, example: Example) -> int:
        """Return how many predictions of one example count: its weight in every mean."""
        raise NotImplementedError

    def said(
        self, logits: Tensor, example: Example, labels: Sequence[str], text: str
    ) -> dict[str, Any]:
        """Return what a model says of one example, as plain values.

        Args:
            logits: `(outputs,)` of a text, or `(seq, outputs)` of its tokens, and padding.
        """
        raise NotImplementedError

    def observe(self, view: View) -> dict[str, Tensor]:
        """Return what is to be known of a batch to measure a model, each `(rows, …)`, float64."""
        raise NotImplementedError

    def sums(self, seen: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what was observed of all batches, as counts and sums that add up over clients."""
        return {name: rows.sum(0) for name, rows in seen.items()}

    def metrics(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the metrics that follow from such sums, and from `num_examples`, which is above 0."""
        raise NotImplementedError

    def tally(
        self,
        module: nn.Module,
        examples: Sequence[Example],
        tokenizer: Any,
        batch_tokens: int,
        measured: Measured = lambda batch, work: work(),
    ) -> dict[str, Tensor]:
        """Return the counts and sums of a model, in eval mode, on examples; `num_examples` is theirs.

        Args:
            measured: does the work on a batch.
        """
        # Imported here: batches are made of what stands in this module.
        from trillium.tasks.batches import by_tokens, collate

        device, seen = next(module.parameters()).device, list[dict[str, Tensor]]()
        names = getattr(getattr(module, "config", None), "id2label", None) or {}

        def look(batch: Batch) -> dict[str, Tensor]:
            output, head = self.output(module, batch)
            view = View(output, batch.labels, head, self.reference(module, batch), names)
            return self.observe(view)

        with torch.inference_mode():
            for chunk in by_tokens(examples, batch_tokens):
                batch = collate(chunk, tokenizer.pad_token_id, device)
                seen.append(measured(batch, partial(look, batch)))
            return self.closed(seen, len(examples))

    def closed(self, seen: Sequence[Mapping[str, Tensor]], num_examples: int) -> dict[str, Tensor]:
        """Return the counts and sums of what was observed, batch by batch; none of no batch."""
        rows = {n: torch.cat([own[n] for own in seen]) for n in (seen[0] if seen else ())}
        found = {name: total.cpu() for name, total in self.sums(rows).items()} if rows else {}
        return {**found, "num_examples": torch.tensor(num_examples, dtype=torch.float64)}

    def evaluate(
        self, module: nn.Module, examples: list[Example], tokenizer: Any, batch_tokens: int
    ) -> dict[str, float]:
        """Return the metrics of a model on held-out examples; the module is in eval mode."""
        if not examples:
            raise UserError(
                "no held-out examples", "nothing can be measured", "Name some rows with --data FILE"
            )
        return self.metrics(self.tally(module, examples, tokenizer, batch_tokens))

    def answers(
        self, module: nn.Module, examples: list[Example], tokenizer: Any, batch_tokens: int
    ) -> dict[str, Any]:
        """Return what a report shows of a model's answers to held-out examples, as plain values."""
        return {}
