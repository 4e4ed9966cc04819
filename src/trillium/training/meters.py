"""What one side computes: floating-point operations, seconds and peak memory, all measured.

FLOPs and peak memory depend on shapes alone, so a piece of work is counted the first time its key
is seen and looked up afterwards; seconds are taken every time. Counting watches the tensor
operations as they run and alters none: counted and plain calls agree bit for bit.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._C import DispatchKey
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import (
    flop_registry,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

aten = torch.ops.aten
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


@contextmanager
def counting(device: torch.device, resident: Callable[[], Iterable[Tensor]]) -> Iterator[Count]:
    """Count the FLOPs and the peak bytes of the enclosed work."""
    count = Count(device)
    count.keep(resident())
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        elsewhere = torch.cuda.memory_allocated(device) - count.peak_bytes
    with count:
        yield count
        if device.type == "cuda":
            # The allocator also sees what kernels take for themselves. Other simulated clients
            # live on the same device: what was there before and is not this one's does not count.
            count.floor = torch.cuda.max_memory_allocated(device) - elsewhere
    # The work may have made tensors that stay.
    count.keep(resident())


@dataclass
class _Storage:
    nbytes: int
    birth: int
    watch: weakref.ref[torch.UntypedStorage]


class Count(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sums the FLOPs of the enclosed operations and follows the bytes they make or touch.

    FLOPs: the formulas of `torch.utils.flop_counter`, but not its mode. That one replaces some
    operations by their parts although the device has a kernel for the whole (`silu_backward`, so
    every Llama): other gradients in the last bit, and more memory.

    Memory: storages are counted, not tensors, so a view or an in-place result adds nothing. One
    that was not made by an enclosed operation was there before, and counts from the start. The
    scratch memory inside a single kernel is not seen. (`torch.distributed._tools.mem_tracker` does
    more, but is private and refuses one model called twice, as a student and its teacher may be.)
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0
        self.floor = 0  # bytes; the peak is at least this
        self._device = device
        self._live: dict[int, _Storage] = {}
        self._changes = [0]  # bytes; the first entry is what was there at the start

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled while it counts: PyTorch need not look out for that at each operation."""
        return False

    @property
    def num_changes(self) -> int:
        """How many changes of memory there were so far."""
        return len(self._changes)

    @property
    def course(self) -> list[int]:
        """Bytes alive after each change of memory so far."""
        return [*accumulate(self._changes)]

    @property
    def peak_bytes(self) -> int:
        """The most bytes alive at once."""
        return max(self.floor, *self.course)

    def keep(self, tensors: Iterable[Tensor]) -> None:
        """Count these tensors from the start, whenever they were made."""
        for tensor in tensors:
            self._meet(tensor, existed=True)
            storage = self._live.get(id(tensor.untyped_storage()))
            if storage is not None and storage.birth > 0:
                self._changes[storage.birth] -= storage.nbytes
                self._changes[0] += storage.nbytes
                storage.birth = 0

    def _meet(self, tensor: Tensor, existed: bool) -> None:
        """Follow the tensor's storage from now on, unless it is followed already or lies elsewhere."""
        untyped = tensor.untyped_storage()
        known, nbytes = self._live.get(id(untyped)), untyped.nbytes()
        if known is None:
            if tensor.device.type == self._device.type:
                self._begin(tensor, existed)
        elif nbytes != known.nbytes:  # resized in place
            self._changes.append(nbytes - known.nbytes)
            known.nbytes = nbytes

    def _begin(self, tensor: Tensor, existed: bool) -> None:
        """Follow the tensor's storage from now on."""
        untyped = tensor.untyped_storage()
        key, nbytes = id(untyped), untyped.nbytes()

        def gone(_: object) -> None:
            self._changes.append(-self._live.pop(key).nbytes)

        birth = 0 if existed else len(self._changes)
        if not existed:
            self._changes.append(0)
        self._changes[birth] += nbytes
        # PyTorch keeps the Python object of a storage for as long as the storage lives, so its
        # identity is a key and its end is the end of the memory.
        self._live[key] = _Storage(nbytes, birth, weakref.ref(untyped, gone))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":  # `prim::device`: a question about a tensor, no operation
            return func(*args, **kwargs)
        if is_made_of_others(func, self._device.type.upper()):
            with self:
                return func._op_dk(DispatchKey.CompositeImplicitAutograd, *args, **kwargs)
        return self.follow(_call, func, args, kwargs)

    def follow(
        self, call: Callable[[Any, Any, Any], Any], func: Any, args: Any, kwargs: Any
    ) -> Any:
        """Return what `call` does with an operation and its arguments, and count it."""
        self._meet_all(args, existed=True)
        self._meet_all(kwargs.values(), existed=True)
        result = call(func, args, kwargs)
        self._meet_all((result,), existed=False)
        formula = _FORMULAS.get(func.overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=result)
        return result

    def _meet_all(self, values: Iterable[Any], existed: bool) -> None:
        for value in values:
            if isinstance(value, Tensor):
                self._meet(value, existed)
            elif isinstance(value, list | tuple):
                self._meet_all(value, existed)


def _call(func: Any, args: Any, kwargs: Any) -> Any:
    return func(*args, **kwargs)


@cache
def is_made_of_others(func: Any, device: str) -> bool:
    """Whether a device would run an operation as a sequence of others.

    Most such operations are taken apart before they come here, except in inference mode.
    """
    has_kernel, name = torch._C._dispatch_has_kernel_for_dispatch_key, func.name()
    return has_kernel(name, "CompositeImplicitAutograd") and not has_kernel(name, device)


def _attention_flops(query: Any, key: Any, value: Any, *rest: Any, **options: Any) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def _attention_backward_flops(
    grad: Any, query: Any, key: Any, value: Any, *rest: Any, **options: Any
) -> int:
    flops = sdpa_backward_flop_count(grad, query, key, value)  # type: ignore[no-untyped-call]
    return int(flops)


def _grouped_mm_flops(left: Any, right: Any, *rest: Any, **options: Any) -> int:
    """Rows (or columns) are dealt out to experts, so each is multiplied once, whatever the deal."""
    batch = left[0] if len(left) == len(right) == 3 else 1
    return int(2 * batch * left[-2] * left[-1] * right[-1])


# What PyTorch 2.13 has no formula for: fused attention on CPU, mixtures of experts.
_MISSING = {
    aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
    aten._grouped_mm: _grouped_mm_flops,
}


def _of_shapes(formula: Any) -> Callable[..., int]:
    """Return a formula of tensors for one of shapes; PyTorch's own wrapper takes ten times as long."""

    def found(*args: Any, out_val: Any, **options: Any) -> int:
        options = {name: _shapes(value) for name, value in options.items()}
        return int(formula(*map(_shapes, args), out_shape=_shapes(out_val), **options))

    return found


def _shapes(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.shape
    return type(value)(map(_shapes, value)) if type(value) in (list, tuple) else value


_FORMULAS: dict[Any, Callable[..., int]] = {
    **{
        operation: _of_shapes(formula.__wrapped__) if hasattr(formula, "__wrapped__") else formula
        for operation, formula in flop_registry.items()
    },
    **{operation: _of_shapes(formula) for operation, formula in _MISSING.items()},
}
