"""A meter that tells peak memory phase by phase of a step, so that each can be extrapolated by itself.

The peak of a training step is where the backward pass begins, all activations being alive, or where it
ends, with all gradients, or in the optimiser's step. Which of them it is depends on the depth of the
model, but each grows evenly with it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from trillium.plan.waves import Work
from trillium.training.meters import Cost, Meter, counting


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
                steps: list[int] = []
                with counting(self._device, resident) as count:

                    def mark(*_: object) -> None:
                        steps.append(len(count.course))

                    handle = register_optimizer_step_pre_hook(mark)
                    try:
                        yield
                    finally:
                        handle.remove()
                self._known[key] = Work(count.flops, _peaks(count.course, steps))
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


def _peaks(course: list[int], steps: list[int]) -> tuple[int, int, int]:
    """Return the most bytes in the first half of the passes, in the second, and in the steps.

    Args:
        course: bytes alive after each change.
        steps: where in it optimisers begin to step.
    """
    end = steps[0] if steps else len(course)
    middle = end // 2 + 1
    parts = course[:middle], course[middle:end], course[end - 1 :]
    first, second, third = (max(part, default=0) for part in parts)
    return first, second, third
