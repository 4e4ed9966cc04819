"""A meter that tells peak memory phase by phase of a step, so that each can be extrapolated by itself.

The peak of a training step is where the backward pass begins, all activations being alive, or where it
ends, with all gradients, or in the optimiser's step. Which of them it is depends on the depth of the
model, but each grows evenly with it. So each of them is extrapolated, and not the largest.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from trillium.plan.fakes import Paper
from trillium.plan.waves import Work
from trillium.training.meters import Cost, Count, Meter

NEAR = 48  # changes of memory; fewer than the backward pass of two blocks makes


class PhaseMeter(Meter):
    """Counts what runs on paper, always on a CPU.

    Args:
        paper: on which it runs.
    """

    def __init__(self, paper: Paper) -> None:
        super().__init__({}, "cpu")
        self._paper = paper
        self._known: dict[Hashable, Work] = {}
        self._work = Work()

    @contextmanager
    def measure(
        self, key: Hashable, resident: Callable[[], Iterable[Tensor]] = tuple
    ) -> Iterator[None]:
        """Add the cost of the enclosed work to the total, as a run does."""
        assert not self._measuring, "a measurement inside another would be counted twice"
        self._measuring = True
        try:
            if key in self._known:
                yield
            else:
                count = _Moments(self._device)
                count.keep(resident())
                with self._paper.watched(count), _before_step(count.begin_step):
                    yield
                count.keep(resident())
                self._known[key] = Work(count.flops, count.peaks())
            self._work = self._work + self._known[key]
        finally:
            self._measuring = False

    def work(self) -> Work:
        """Return the total since the last `reset`."""
        return self._work

    def read(self) -> Cost:
        """Return the same as a run's meter does."""
        return Cost(self._work.flops, 0.0, self._work.peak_bytes)

    def reset(self, total: Cost = Cost()) -> None:
        """Start again from zero; what is known stays."""
        assert total == Cost()
        self._work = Work()


@contextmanager
def _before_step(call: Callable[..., None]) -> Iterator[None]:
    """Have something called whenever an optimiser's step begins."""
    handle = register_optimizer_step_pre_hook(call)
    try:
        yield
    finally:
        handle.remove()


class _Moments(Count):  # type: ignore[no-untyped-call]
    """Counts, and notes when the backward pass and the optimiser's step begin."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._backward: int | None = None  # where in the course of memory
        self._step: int | None = None

    def follow(
        self, call: Callable[[Any, Any, Any], Any], func: Any, args: Any, kwargs: Any
    ) -> Any:
        """As the base class, and look whether this is the first operation of a backward pass."""
        if self._backward is None and torch._C._current_graph_task_id() != -1:
            self._backward = len(self.course)
        return super().follow(call, func, args, kwargs)

    def begin_step(self, *_: object) -> None:
        """Note that the first step begins; a hook of the optimiser."""
        if self._step is None:
            self._step = len(self.course)

    def peaks(self) -> tuple[int, int, int, int]:
        """Return the most bytes in the passes, until the backward one begins, at its end, in the step.

        A few changes of memory around both ends of the backward pass belong to them, the same ones
        whatever the depth.
        """
        course = self.course
        step = len(course) if self._step is None else self._step
        backward = step if self._backward is None else self._backward
        passes, begin = course[:step], course[: min(backward + NEAR, step)]
        return (
            max(passes),
            max(begin),
            max(course[max(step - NEAR, 0) : step]),
            max(course[step - 1 :]),
        )
