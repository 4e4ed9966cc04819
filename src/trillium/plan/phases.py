"""A meter that tells peak memory phase by phase of a step, so that each can be extrapolated by itself.

The peak of a training step is where the backward pass begins, all activations being alive, or where it
ends, with all gradients, or in the optimiser's step. Which of them it is depends on the depth of the
model, but each grows evenly with it. So each of them is extrapolated, and not the largest.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from trillium.plan.waves import Work
from trillium.training.meters import Cost, Count, Meter, counting

NEAR = 48  # changes of memory; fewer than the backward pass of two blocks makes


class PhaseMeter(Meter):
    """Counts what runs on paper, always on a CPU."""

    def __init__(self) -> None:
        super().__init__({}, "cpu")
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
                with counting(self._device, resident) as count, _Moments(count) as moments:
                    yield
                self._known[key] = Work(count.flops, moments.peaks())
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


class _Moments(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes when the backward pass and the optimiser's step begin.

    Args:
        count: counts the same work.
    """

    def __init__(self, count: Count) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._count = count
        self._backward: int | None = None  # where in the course of memory
        self._step: int | None = None

    def __enter__(self) -> Self:
        self._handle = register_optimizer_step_pre_hook(self._begin_step)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *found: object) -> None:
        self._handle.remove()
        super().__exit__(*found)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._backward is None and torch._C._current_graph_task_id() != -1:
            self._backward = len(self._count.course)
        return func(*args, **(kwargs or {}))

    def _begin_step(self, *_: object) -> None:
        if self._step is None:
            self._step = len(self._count.course)

    def peaks(self) -> tuple[int, int, int, int]:
        """Return the most bytes in the passes, until the backward one begins, at its end, in the step.

        A few changes of memory around both ends of the backward pass belong to them, the same ones
        whatever the depth.
        """
        course = self._count.course
        step = len(course) if self._step is None else self._step
        backward = step if self._backward is None else self._backward
        passes, begin = course[:step], course[: min(backward + NEAR, step)]
        return (
            max(passes),
            max(begin),
            max(course[max(step - NEAR, 0) : step]),
            max(course[step - 1 :]),
        )
