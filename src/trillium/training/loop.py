"""The one local loop: every framework's local training and distillation runs through here."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from trillium.models.slots import State
from trillium.privacy.example import NoisySteps, mean_losses
from trillium.privacy.rows import Rows, are_linear, rows_of
from trillium.tasks import Adjustment, Batch, Example, Task
from trillium.tasks.batches import T, collate, epoch, in_order
from trillium.tasks.vocabulary import is_wide, num_chunks
from trillium.training.meters import Evenly, Meter, resident_tensors
from trillium.training.optimizers import set_learning_rate
from trillium.training.settings import Training

Seen = tuple[Tensor, int]
"""A summed loss, and how many predictions it sums over."""
Objective = Callable[[nn.Module, Batch], Seen]
"""Gives this of a batch."""


def batches(
    examples: Sequence[T], training: Training, generator: torch.Generator
) -> Iterator[list[T]]:
    """Yield the batches of one round, each epoch in a new order."""
    left = training.num_steps(len(examples))
    while left > 0:
        for chunk in epoch(examples, training.batch_size, generator):
            if left == 0:
                return
            left -= 1
            yield chunk


@dataclass(frozen=True)
class Trained:
    """What a stretch of training saw: the mean loss before each step, and the predictions counted."""

    loss: float
    weight: float
    num_steps: int


@dataclass(frozen=True)
class Loop:
    """A model, its data form and its meter: what stays the same from step to step.

    Attributes:
        module: the model with the trained parameters mounted.
        meter: counts what the steps cost; `label` tells their kind apart from others'.
        training: says what goes through the model at once, and in which precision.
        private: bounds what each example adds to a step, and adds noise.
        known: gives examples with what is known of them.
    """

    module: nn.Module
    state: State
    pad_id: int
    device: torch.device
    meter: Meter
    label: str
    task: Task
    training: Training
    private: NoisySteps | None = None
    known: Callable[[Sequence[Example]], list[Example]] = list

    def run(
        self,
        chunks: Iterable[list[Example]],
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        *,
        max_grad_norm: float | None,
        learning_rate: Callable[[int], float] | None = None,
        correct: Callable[[], None] | None = None,
        even: bool = True,
    ) -> Trained:
        """Take one optimiser step on the mean loss of each batch.

        Args:
            max_grad_norm: global l2 norm to clip to.
            learning_rate: learning rate by step, counted from 0; the optimiser's own without it.
            even: whether all rows that count are treated alike.
        """
        self.module.train()
        total, weight, steps = 0.0, 0.0, 0
        moved = [parameter for parameter in self.state.values() if parameter.requires_grad]
        for step, chunk in enumerate(chunks):
            if learning_rate is not None:
                set_learning_rate(optimizer, learning_rate(step))
            parts = self._parts(chunk)
            predictions = sum(self.task.num_targets(example) for example in chunk)

            def one_step(
                parts: list[Batch] = parts, predictions: int = predictions, step: int = step
            ) -> Seen:
                if self.private is not None:
                    seen = self._private_gradient(parts, objective, self.private, step)
                else:
                    seen = self._mean_gradient(parts, objective, predictions)
                if correct is not None:
                    correct()
                if max_grad_norm is not None:
                    nn.utils.clip_grad_norm_(self.state.values(), max_grad_norm)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                return _summed(seen)

            key, resident, evenly = self._cost(parts, optimizer)
            plain = isinstance(objective, TaskLoss) and self.private is None
            evenly = evenly if even and self.private is None else None
            loss, count = self.meter.run(
                key, one_step, resident, moves=moved, plain=plain, evenly=evenly
            )
            total += float(loss)
            weight, steps = weight + count, steps + 1
        self.module.eval()
        return Trained(total / max(weight, 1.0), weight, steps)

    def _mean_gradient(
        self, parts: Sequence[Batch], objective: Objective, predictions: int
    ) -> list[Seen]:
        """Leave the gradient of the mean loss of a batch in the parameters."""
        seen = list[Seen]()
        for batch in parts:
            with self.training.precision(self.device):
                loss, count = objective(self.module, batch)
            (loss / max(predictions, 1)).backward()  # type: ignore[no-untyped-call]
            seen.append((loss.detach(), count))
            del loss  # and all that it was computed from
        return seen

    def _private_gradient(
        self, parts: Sequence[Batch], objective: Objective, private: NoisySteps, step: int
    ) -> list[Seen]:
        """Leave the noisy mean of bounded gradients of a batch in the parameters."""
        seen, rows = list[Seen](), list[Rows]()
        for batch in parts:
            with rows_of(self.module, self.state) as found:
                with self.training.precision(self.device):
                    loss, count = objective(self.module, batch)
                loss.backward()  # type: ignore[no-untyped-call]
            seen.append((loss.detach(), count))
            if not self.are_linear:  # then an example is a part of its own
                trained = self.state.items()
                found = {
                    n: (torch.zeros_like(p) if p.grad is None else p.grad)[None]
                    for n, p in trained
                    if p.requires_grad
                }
            counts = [self.task.num_supervised(labels[None]) for labels in batch.labels]
            rows.append(mean_losses(found, counts))
            for parameter in self.state.values():
                parameter.grad = None
        private.gradient(rows, self.state, step)
        return seen or [(torch.zeros(()), 0)]

    def fit(
        self,
        chunks: Iterable[list[Example]],
        objective: Objective,
        training: Training,
        progress: Callable[[float], float],
        num_steps: int,
        correct: Callable[[], None] | None = None,
        even: bool = True,
    ) -> Trained:
        """Train with a new optimiser for the steps of one round.

        Args:
            chunks: the batches, `num_steps` of them.
            progress: how far the run is at a fraction of this round.
            correct, even: as in `run`.
        """
        return self.run(
            chunks,
            objective,
            training.build(self.state),
            max_grad_norm=training.max_grad_norm,
            learning_rate=lambda step: training.learning_rate(progress(step / num_steps)),
            correct=correct,
            even=even,
        )

    def gradient(self, chunks: Iterable[list[Example]], objective: Objective) -> Trained:
        """Leave the gradient of the mean loss over all batches in the parameters' `grad`."""
        self.module.train()
        total, weight, steps = 0.0, 0.0, 0
        for batch in (part for chunk in chunks for part in self._parts(chunk)):

            def one_batch(batch: Batch = batch) -> tuple[Tensor, int]:
                with self.training.precision(self.device):
                    loss, count = objective(self.module, batch)
                loss.backward()  # type: ignore[no-untyped-call]
                return loss.detach(), count

            key, resident, evenly = self._cost([batch])
            fills = self.state.values()
            loss, count = self.meter.run(key, one_batch, resident, fills=fills, evenly=evenly)
            total += float(loss)
            weight, steps = weight + count, steps + 1
        for parameter in self.state.values():
            if parameter.grad is not None:
                parameter.grad /= max(weight, 1.0)
        self.module.eval()
        return Trained(total / max(weight, 1.0), weight, steps)

    @cached_property
    def are_linear(self) -> bool:
        """Whether the gradients of all examples of a batch can be had at once."""
        return are_linear(self.module, self.state)

    @cached_property
    def trained(self) -> tuple[tuple[str, torch.Size], ...]:
        """Names and shapes of what trains."""
        return tuple((n, p.shape) for n, p in self.state.items() if p.requires_grad)

    def rows(self, batch: Batch) -> int:
        """Return what costs depend on beside the layout of a batch: how many rows count, if any do."""
        return self.task.num_rows(batch.labels) if is_wide(self.module) else 0

    def _parts(self, chunk: list[Example]) -> list[Batch]:
        """Return the batches that go through the model one by one."""
        size = self.training.micro_batch_size or max(len(chunk), 1)
        if self.private is not None and not self.are_linear:
            size = 1
        parts = in_order(self.known(chunk), size)
        return [collate(part, self.pad_id, self.device) for part in parts]

    def _cost(
        self, parts: Sequence[Batch], *optimizers: torch.optim.Optimizer
    ) -> tuple[Hashable, Callable[[], Iterator[Tensor]], Evenly | None]:
        """Return on what the cost of a step depends, what is in memory besides, and how it grows."""
        forms = tuple((batch.layout, self.rows(batch)) for batch in parts)
        rest = self.trained, bool(optimizers), self.private is None

        def resident() -> Iterator[Tensor]:
            yield from resident_tensors(self.module, *optimizers)
            if not optimizers:  # gradients are summed over batches, so they last
                yield from (p.grad for p in self.state.values() if p.grad is not None)

        return (self.label, forms, *rest), resident, self.evenly(self.label, forms, *rest)

    def evenly(
        self, label: str, forms: Sequence[tuple[Hashable, int]], *rest: Hashable
    ) -> Evenly | None:
        """Return with which number of rows the cost of a batch grows, and what else it depends on.

        Args:
            forms: of its parts, layouts and numbers of rows; of several none grows by itself.
        """
        if len(forms) != 1 or not forms[0][1]:
            return None
        [(layout, rows)] = forms
        return (label, layout, num_chunks(self.module, rows), *rest), rows


def losses(objective: Objective, module: nn.Module, parts: Sequence[Batch]) -> Seen:
    """Return the summed loss of a batch in parts, and how many predictions it sums over."""
    return _summed([objective(module, batch) for batch in parts])


def _summed(seen: Sequence[Seen]) -> Seen:
    (loss, count), *others = seen
    for other, predictions in others:
        loss, count = loss + other, count + predictions
    return loss, count


@dataclass(frozen=True)
class TaskLoss:
    """The task's own loss: what sides minimise where no framework has anything to add.

    Attributes:
        adjustment: of the logits, by the data of the side that trains.
    """

    task: Task
    adjustment: Adjustment | None

    def __call__(self, module: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        """Return the summed loss of a batch and how many predictions it sums over."""
        reference = self.task.reference(module, batch)
        output, head = self.task.output(module, batch)
        return self.task.loss(output, batch.labels, head, self.adjustment, reference)


def task_objective(task: Task, examples: Sequence[Example]) -> Objective:
    """Return the task's own loss, for a side that trains on these examples."""
    return TaskLoss(task, task.adjustment(examples))
