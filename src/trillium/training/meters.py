"""What one side computes: floating-point operations, seconds and peak memory, all measured.

FLOPs and peak memory depend on shapes alone, so a piece of work is counted the first time its key
is seen and looked up afterwards; seconds are taken every time. Counting watches the tensor
operations as they run and alters none: counted and plain calls agree bit for bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from trillium.training.counting import counting

T = TypeVar("T")


@dataclass(frozen=True)
class Cost:
    """What some work cost: operations executed, wall-clock seconds, most bytes alive at once.

    A multiply-add is two FLOPs; only matrix products, attention and convolutions are counted, as is
    usual. Costs add up: FLOPs and seconds are summed, the peak is the larger of the two.
    """

    flops: float = 0.0
    seconds: float = 0.0
    peak_bytes: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.flops + other.flops,
            self.seconds + other.seconds,
            max(self.peak_bytes, other.peak_bytes),
        )


Evenly = tuple[Hashable, int]
"""A key without its number of rows, and that number: with each row work takes so much more."""

CostCache = dict[Hashable, Cost]
"""FLOPs and peak bytes by key, seconds left at zero; share one among clients of one model shape."""


def resident_tensors(model: nn.Module, *optimizers: torch.optim.Optimizer) -> Iterator[Tensor]:
    """Yield what lasts from one step to the next: parameters, buffers and optimiser state.

    Gradients are left out on purpose: they come and go within a step, and are seen when they do.
    Where they are summed over several measured steps, they last too: add them to these.
    """
    yield from model.parameters()
    yield from model.buffers()
    states = [list(optimizer.state.values()) for optimizer in optimizers]
    yield from (leaf for leaf in tree_leaves(states) if isinstance(leaf, Tensor))


def _nothing() -> Iterable[Tensor]:
    return ()


class Meter:
    """Sums what one side, a client or the server, computed since the last `reset`.

    Clients of one model shape share a cache of costs; peak bytes are those of the device.
    """

    def __init__(self, cache: CostCache, device: torch.device | str = "cpu") -> None:
        self._cache = cache
        self._device = torch.device(device)
        self._total = Cost()
        self._measuring = False

    @contextmanager
    def measure(
        self, key: Hashable, resident: Callable[[], Iterable[Tensor]] = _nothing
    ) -> Iterator[None]:
        """Add the cost of the enclosed work to the total.

        The work is what this side executes itself: never enclose a call that waits for another.
        If it raises, nothing is added. The seconds of the one counted call include the counting.

        Args:
            key: all that FLOPs and memory depend on: the kind of work, the shapes of the batch, and
                what is trained (work that differs in one of these needs another key).
            resident: the tensors that stay in memory between calls, usually `resident_tensors`;
                called only when the work is counted, before and after it. Those that first appear
                during the work (the state of a new optimiser) count from its start, so that the
                peak is that of every later step, not that of the first.
        """
        assert not self._measuring, "a measurement inside another would be counted twice"
        self._measuring = True
        try:
            self._synchronize()
            start = time.perf_counter()
            known = self._cache.get(key)
            if known is None:
                with counting(self._device, resident) as count:
                    yield
                known = self._cache[key] = Cost(count.flops, 0.0, count.peak_bytes)
            else:
                yield
            self._synchronize()
            self._total += known + Cost(seconds=time.perf_counter() - start)
        finally:
            self._measuring = False

    def run(
        self,
        key: Hashable,
        work: Callable[..., T],
        resident: Callable[[], Iterable[Tensor]] = _nothing,
        *,
        form: Hashable = None,
        moves: Iterable[nn.Parameter] = (),
        fills: Iterable[Tensor] = (),
        needs: Sequence[Tensor] = (),
        plain: bool = False,
        evenly: Evenly | None = None,
    ) -> T:
        """Return what some work returns, and add its cost to the total, as `measure` does.

        Whoever wants the cost alone need not do the work again whose key is known. That is why it
        says what it changes: all else that it does must be in what it returns.

        Args:
            work: what is done, given `needs`.
            form: on what the form of what it returns depends besides the key.
            moves: parameters that it steps.
            fills: tensors whose `grad` it fills.
            needs: tensors whose way back it goes.
            plain: whether it is the same work under this key in every framework.
            evenly: if it is the same operations for other numbers of rows, and each of what they make
                grows evenly with it.
        """
        with self.measure(key, resident):
            return work(*needs)

    def read(self) -> Cost:
        """Return the total since the last `reset`."""
        return self._total

    def reset(self, total: Cost = Cost()) -> None:
        """Start again, from zero or from a total of before; what is cached stays."""
        self._total = total

    def _synchronize(self) -> None:
        """Wait for the device, whose kernels run behind the interpreter's back."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
