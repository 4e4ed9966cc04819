"""What memory is made of, phase by phase of some work.

The peak of a training step is where the backward pass begins, all activations being alive, or where it
ends, with all gradients, or in the optimiser's step. Which of them it is depends on the depth of the
model, but each grows evenly with it. So each of them is extrapolated, and not the largest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from trillium.plan.fakes import BUFFER, is_fake
from trillium.plan.memory import Memory
from trillium.training.meters import Count

STATE = "trillium_state"  # marks the tensors that an optimiser keeps
NEAR = 48  # changes of memory; fewer than the backward pass of two blocks makes
Phases = tuple[Memory, ...]
"""What is held at the peak of each phase of some work."""


@contextmanager
def before_step(call: Callable[..., None]) -> Iterator[None]:
    """Have something called whenever an optimiser's step begins."""
    handle = register_optimizer_step_pre_hook(call)
    try:
        yield
    finally:
        handle.remove()


class Moments(Count):  # type: ignore[no-untyped-call]
    """Counts, and notes when the backward pass and the optimiser's step begin."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._backward: int | None = None  # where in the course of memory
        self._step: int | None = None
        self._gradients: dict[int, tuple[int, int]] = {}  # birth and bytes by storage
        self._found: set[int] = set()  # storages without values that were there before

    def follow(
        self, call: Callable[[Any, Any, Any], Any], func: Any, args: Any, kwargs: Any
    ) -> Any:
        """As the base class, and look whether this is the first operation of a backward pass."""
        if self._backward is None and torch._C._current_graph_task_id() != -1:
            self._backward = self.num_changes
        return super().follow(call, func, args, kwargs)

    def _begin(self, tensor: Tensor, existed: bool) -> None:
        if existed and is_fake(tensor):
            self._found.add(id(tensor.untyped_storage()))
        super()._begin(tensor, existed)

    def is_closed(self, resident: Sequence[Tensor]) -> bool:
        """Whether nothing without values was looked at but what is resident."""
        return self._found <= {id(tensor.untyped_storage()) for tensor in resident}

    def begin_step(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        """Note that a step begins, and which gradients there are; a hook of the optimiser."""
        if self._step is None:
            self._step = self.num_changes
        self._note_gradients(p for group in optimizer.param_groups for p in group["params"])

    def _note_gradients(self, parameters: Iterable[Tensor]) -> None:
        for parameter in parameters:
            if parameter.grad is not None:
                key = id(parameter.grad.untyped_storage())
                if key in self._live:
                    found = self._live[key]
                    self._gradients[key] = found.birth, found.nbytes

    def phases(self, resident: Sequence[Tensor]) -> Phases:
        """Return the most that is held in each phase: passes, begin and end of backward, the step.

        A few changes of memory around both ends of the backward pass belong to them, the same ones
        whatever the depth.

        Args:
            resident: what stays.
        """
        self._note_gradients(t for t in resident if isinstance(t, nn.Parameter))
        course = self.course
        step = len(course) if self._step is None else self._step
        backward = step if self._backward is None else self._backward
        spans = [
            range(step),
            range(min(backward + NEAR, step)),
            range(max(step - NEAR, 0), step),
            range(step - 1, len(course)),
        ]
        weights, states = _held(resident)
        found = []
        for span in spans:
            at = max(span, key=course.__getitem__)
            born = [nbytes for birth, nbytes in self._gradients.values() if birth <= at]
            found.append(_divided(course[at], weights, sum(born), states))
        return tuple(found)


def _held(resident: Sequence[Tensor]) -> tuple[int, int]:
    """Return the bytes of parameters and buffers, and of the state of optimisers, among tensors."""
    weights: dict[int, int] = {}
    states: dict[int, int] = {}
    for tensor in resident:
        storage = tensor.untyped_storage()
        if STATE in vars(tensor):
            states[id(storage)] = storage.nbytes()
        elif isinstance(tensor, nn.Parameter) or vars(tensor).get(BUFFER) or not is_fake(tensor):
            weights[id(storage)] = storage.nbytes()
    return sum(weights.values()), sum(states.values())


def _divided(peak: int, weights: int, gradients: int, states: int) -> Memory:
    weights = min(weights, peak)
    states = min(states, peak - weights)
    gradients = min(gradients, peak - weights - states)
    return Memory(weights, gradients, states, peak - weights - states - gradients)
