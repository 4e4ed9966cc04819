"""What memory is made of, phase by phase of some work.

The peak of a training step is where the backward pass begins, all activations being alive, or where it
ends, with all gradients, or in the optimiser's step. Which of them it is depends on the depth of the
model, but each grows evenly with it. So each of them is extrapolated, and not the largest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from trillium.plan.fakes import BUFFER, is_fake
from trillium.plan.memory import Memory
from trillium.training.counting import Count

STATE = "trillium_state"  # marks the tensors that an optimiser keeps
NEAR = 48  # changes of memory; fewer than the backward pass of two blocks makes
_FIRST = 3  # sums that are not of single gradients or moments
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

    def record(self, resident: Sequence[Tensor]) -> Record:
        """Return what was counted."""
        self._note_gradients(t for t in resident if isinstance(t, nn.Parameter))
        step = self.num_changes if self._step is None else self._step
        backward = step if self._backward is None else self._backward
        births, sizes = [[*own] for own in zip(*self._gradients.values(), strict=True)] or [[], []]
        return Record(
            marks=(backward, step, *births),
            sums=np.array([self.flops, *_held(resident), *sizes, *self.course]),
        )


@dataclass(frozen=True, eq=False)
class Record:
    """What some work takes, all of it in numbers.

    Attributes:
        marks: where in the course of memory the backward pass and the step begin, and where each
            gradient was born.
        sums: FLOPs, then bytes: of weights, of the state of optimisers, of each gradient; and what is
            alive after each change of memory.
    """

    marks: tuple[int, ...]
    sums: NDArray[np.int64]

    @property
    def flops(self) -> int:
        """The floating-point operations."""
        return int(self.sums[0])

    @cached_property
    def _peaks(self) -> tuple[int, ...]:
        """Where in the course the most is held: in the passes, at both ends of backward, in the step.

        A few changes of memory around both ends of the backward pass belong to them, the same ones
        whatever the depth.
        """
        backward, step, *births = self.marks
        course = self.sums[_FIRST + len(births) :]
        spans = [
            (0, step),
            (0, min(backward + NEAR, step)),
            (max(step - NEAR, 0), step),
            (step - 1, len(course)),
        ]
        return tuple(first + int(course[first:last].argmax()) for first, last in spans)

    @cached_property
    def phases(self) -> Phases:
        """The most that is held in each phase."""
        births, (_, weights, states) = self.marks[2:], map(int, self.sums[:_FIRST])
        sizes, course = np.split(self.sums[_FIRST:], [len(births)])
        found = []
        for at in self._peaks:
            born = [int(size) for birth, size in zip(births, sizes, strict=True) if birth <= at]
            found.append(_divided(int(course[at]), weights, sum(born), states))
        return tuple(found)

    @property
    def peak_bytes(self) -> int:
        """The most that is held at all."""
        return int(max((memory.peak for memory in self.phases), default=0))

    def towards(self, other: Record, steps: int, of: int) -> Record | None:
        """Return what lies so many of so many steps towards another; `None` if it is not whole.

        What is held for a moment, but never the most, may depend on how rows are divided.
        """
        if self.marks != other.marks or len(self.sums) != len(other.sums):
            return None
        more, left = np.divmod((other.sums - self.sums) * steps, of)
        found, start = Record(self.marks, self.sums + more), _FIRST + len(self.marks) - 2
        is_whole = not left[:start].any() and not left[start:][[*found._peaks]].any()
        return found if is_whole else None


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
