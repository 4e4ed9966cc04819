"""The one local loop: every framework's local training and distillation runs through here."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from trillium.errors import UserError
from trillium.models.slots import State, matches, train_only
from trillium.tasks import Adjustment, Batch, Example, Task
from trillium.tasks.batches import T, collate, epoch
from trillium.tasks.vocabulary import is_wide
from trillium.training.meters import Meter, resident_tensors
from trillium.training.optimizers import Optimizer, set_learning_rate

Objective = Callable[[nn.Module, Batch], tuple[Tensor, int]]
"""Gives the summed loss of a batch and how many predictions it sums over."""


class Training(BaseModel):
    """How a side trains.

    Attributes:
        batch_size: examples in one optimiser step of one client.
        local_epochs: passes over a client's data in one round.
        local_steps: optimiser steps in one round instead; the data is passed as often as it takes.
        optimizer: optimiser of the clients and, in a split, of each part.
        schedule: course of the learning rate over the whole run, behind its warm-up.
        warmup: share of the run over which the learning rate rises from zero.
        weight_decay: pulls all that trains towards zero, as the optimiser does it.
        lr_factors: multiplies the learning rate of tensors by a pattern of their names: `head`, a part
            of the name such as `lora_B` (LoRA+ gives it 16), or a pattern with `*`. 0 freezes them.
        max_grad_norm: gradients are scaled down to this global l2 norm; null does not clip.
        gradient_checkpointing: blocks of the model keep their inputs alone, and run once more on the
            way back: a fraction of the memory, for up to half as much compute again. It changes no
            result.
        max_length: tokens of an example; longer ones are cut, and counted. Null takes what the texts of
            the run need: the longest, or 99 % where few are far longer; at most 1,024, and what the
            model has positions for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_size: int = Field(default=16, ge=1)
    local_epochs: int = Field(default=1, ge=1)
    local_steps: int | None = Field(default=None, ge=1)
    optimizer: Optimizer = Optimizer(name="adamw", lr=1e-3)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup: float = Field(default=0.0, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    lr_factors: dict[str, Annotated[float, Field(ge=0)]] = {}
    max_grad_norm: float | None = Field(default=1.0, gt=0)
    gradient_checkpointing: bool = False
    max_length: int | None = Field(default=None, ge=4)

    @model_validator(mode="after")
    def _decays(self) -> Self:
        """Refuse weight decay in another place, and where the optimiser has none."""
        if "weight_decay" in self.optimizer.options:
            raise UserError(
                f"optimizer.weight_decay={self.optimizer.options['weight_decay']}",
                "of local training it is an option of its own",
                f"Write training.weight_decay={self.optimizer.options['weight_decay']}",
            )
        if self.weight_decay and not self.optimizer.decays:
            raise UserError(
                f"weight_decay={self.weight_decay} with training.optimizer={self.optimizer.name}",
                "this optimiser has no weight decay",
                "Write training.optimizer.name=adamw, or leave training.weight_decay out",
            )
        return self

    @property
    def limit(self) -> int:
        """Tokens of an example at most; known once the data has been read."""
        assert self.max_length is not None, "texts have not been counted"
        return self.max_length

    def num_steps(self, num_examples: int) -> int:
        """Return the optimiser steps of one round on so many examples."""
        if self.local_steps is not None:
            return self.local_steps
        return self.local_epochs * math.ceil(num_examples / self.batch_size)

    def factor(self, name: str) -> float:
        """Return by how much the learning rate of a tensor is multiplied."""
        return next((f for p, f in self.lr_factors.items() if matches(name, [p])), 1.0)

    def trained(self, names: Iterable[str]) -> list[str]:
        """Return those of the tensors that the learning rate does not freeze."""
        return [name for name in names if self.factor(name) > 0]

    def build(self, state: State, saved: Mapping[str, Any] | None = None) -> torch.optim.Optimizer:
        """Return an optimiser over those parameters of a state that train; freeze those of factor 0.

        Args:
            saved: `state_dict` of an earlier one over the same parameters, which it goes on from.
        """
        groups: dict[float, list[nn.Parameter]] = {}
        train_only(state, self.trained(n for n, p in state.items() if p.requires_grad))
        for name, parameter in state.items():
            if parameter.requires_grad:
                groups.setdefault(self.factor(name), []).append(parameter)
        found: list[dict[str, Any]] = [
            {"params": params, "lr": self.optimizer.lr * factor, "lr_factor": factor}
            for factor, params in groups.items()
        ]
        decay = {"weight_decay": self.weight_decay} if self.weight_decay else {}
        return self.optimizer.build(found, saved, **decay)

    def learning_rate(self, progress: float) -> float:
        """Return the learning rate at a point of the run, `progress` from 0 to 1."""
        if progress < self.warmup:
            return self.optimizer.lr * progress / self.warmup
        progress = (progress - self.warmup) / (1.0 - self.warmup)
        factor = {
            "constant": 1.0,
            "linear": 1.0 - progress,
            "cosine": 0.5 + 0.5 * math.cos(math.pi * progress),
        }[self.schedule]
        return self.optimizer.lr * factor


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
    """

    module: nn.Module
    state: State
    pad_id: int
    device: torch.device
    meter: Meter
    label: str
    task: Task

    def run(
        self,
        chunks: Iterable[list[Example]],
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        *,
        max_grad_norm: float | None,
        learning_rate: Callable[[int], float] | None = None,
        correct: Callable[[], None] | None = None,
    ) -> Trained:
        """Take one optimiser step on the mean loss of each batch.

        Args:
            max_grad_norm: global l2 norm to clip to.
            learning_rate: learning rate by step, counted from 0; the optimiser's own without it.
        """
        self.module.train()
        total, weight, steps = 0.0, 0.0, 0
        moved = [parameter for parameter in self.state.values() if parameter.requires_grad]
        for step, chunk in enumerate(chunks):
            if learning_rate is not None:
                set_learning_rate(optimizer, learning_rate(step))
            batch = collate(chunk, self.pad_id, self.device)

            def one_step(batch: Batch = batch) -> tuple[Tensor, int]:
                loss, count = objective(self.module, batch)
                (loss / max(count, 1)).backward()  # type: ignore[no-untyped-call]
                if correct is not None:
                    correct()
                if max_grad_norm is not None:
                    nn.utils.clip_grad_norm_(self.state.values(), max_grad_norm)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                return loss.detach(), count

            key, resident = self._cost(batch, optimizer)
            plain = isinstance(objective, TaskLoss)
            loss, count = self.meter.run(key, one_step, resident, moves=moved, plain=plain)
            total += float(loss)
            weight, steps = weight + count, steps + 1
        self.module.eval()
        return Trained(total / max(weight, 1.0), weight, steps)

    def fit(
        self,
        chunks: Iterable[list[Example]],
        objective: Objective,
        training: Training,
        progress: Callable[[float], float],
        num_steps: int,
        correct: Callable[[], None] | None = None,
    ) -> Trained:
        """Train with a new optimiser for the steps of one round.

        Args:
            chunks: the batches, `num_steps` of them.
            progress: how far the run is at a fraction of this round.
            correct: as in `run`.
        """
        return self.run(
            chunks,
            objective,
            training.build(self.state),
            max_grad_norm=training.max_grad_norm,
            learning_rate=lambda step: training.learning_rate(progress(step / num_steps)),
            correct=correct,
        )

    def gradient(self, chunks: Iterable[list[Example]], objective: Objective) -> Trained:
        """Leave the gradient of the mean loss over all batches in the parameters' `grad`."""
        self.module.train()
        total, weight, steps = 0.0, 0.0, 0
        for chunk in chunks:
            batch = collate(chunk, self.pad_id, self.device)

            def one_batch(batch: Batch = batch) -> tuple[Tensor, int]:
                loss, count = objective(self.module, batch)
                loss.backward()  # type: ignore[no-untyped-call]
                return loss.detach(), count

            key, resident = self._cost(batch)
            loss, count = self.meter.run(key, one_batch, resident, fills=self.state.values())
            total += float(loss)
            weight, steps = weight + count, steps + 1
        for parameter in self.state.values():
            if parameter.grad is not None:
                parameter.grad /= max(weight, 1.0)
        self.module.eval()
        return Trained(total / max(weight, 1.0), weight, steps)

    @cached_property
    def trained(self) -> tuple[tuple[str, torch.Size], ...]:
        """Names and shapes of what trains."""
        return tuple((n, p.shape) for n, p in self.state.items() if p.requires_grad)

    def rows(self, batch: Batch) -> int:
        """Return what costs depend on beside the layout of a batch: how many rows count, if any do."""
        return self.task.num_supervised(batch.labels) if is_wide(self.module) else 0

    def _cost(
        self, batch: Batch, *optimizers: torch.optim.Optimizer
    ) -> tuple[Hashable, Callable[[], Iterator[Tensor]]]:
        """Return on what the cost of a batch depends, and what is in memory besides."""
        key = (self.label, batch.layout, self.rows(batch), self.trained, bool(optimizers))

        def resident() -> Iterator[Tensor]:
            yield from resident_tensors(self.module, *optimizers)
            if not optimizers:  # gradients are summed over batches, so they last
                yield from (p.grad for p in self.state.values() if p.grad is not None)

        return key, resident


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
        output, head = self.task.output(module, batch)
        return self.task.loss(output, batch.labels, head, self.adjustment)


def task_objective(task: Task, examples: Sequence[Example]) -> Objective:
    """Return the task's own loss, for a side that trains on these examples."""
    return TaskLoss(task, task.adjustment(examples))
