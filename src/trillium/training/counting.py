"""FLOPs and bytes of memory, counted operation by operation as work runs."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import (
    flop_registry,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

aten = torch.ops.aten


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
    def so_far(self) -> tuple[int, int, int]:
        """What was counted until now: FLOPs, bytes at the start, and changes of memory."""
        return self.flops, self._changes[0], len(self._changes)

    def again(self, before: tuple[int, int, int], times: int) -> None:
        """Count once more, so many times, what was counted since `so_far` was as it was before."""
        flops, at_start, num_changes = before
        self.flops += times * (self.flops - flops)
        self._changes[0] += times * (self._changes[0] - at_start)
        self._changes += times * self._changes[num_changes:]

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
