"""Tensors that have a shape, a dtype and a device, but no values: the plan runs the real code on them.

PyTorch's fake tensors choose the same kernels and allocate the same storages as real ones on a CPU, so
the meters count the same FLOPs and the same peak bytes; a model of seventy billion parameters takes a
few megabytes. What depends on values is answered by `Paper`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import DispatchKey
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode

from trillium.plan.known import Call, Known
from trillium.plan.operations import Operation, Operations
from trillium.plan.values import Values
from trillium.training.counting import Count

aten = torch.ops.aten
_DEVICE = torch.ops.prim.device.default

BUFFER = "trillium_buffer"  # marks the buffers of models
DEPENDS_ON_VALUES = (DataDependentOutputException, DynamicOutputShapeException)
"""What is raised where a shape or a branch depends on values that a fake tensor does not have."""


class Paper:
    """Makes fake tensors, and the surroundings in which code runs on them.

    Real tensors may be mixed in: token ids, masks and labels are real in a plan, so that all that
    depends on their values (padding, how many predictions count) is as in a run.

    Attributes:
        values: knows which fake tensors are equal.
    """

    def __init__(self) -> None:
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._known = Known(self._mode)
        self.values = Values()
        self._answers = _Answers(self._known, self.values)
        self._is_running = False

    def tensor(self, like: Tensor) -> Tensor:
        """Return a fake tensor on the CPU, of the shape and dtype of a meta tensor."""
        return self._known.fake(like.detach())

    def parameter(self, like: nn.Parameter) -> nn.Parameter:
        """Return the same as a parameter; `nn.Parameter` would dispatch several operations for it."""
        device, trains = torch.device("cpu"), like.requires_grad
        form = like.data.to(
            "meta"
        )  # the old `torch.FloatTensor(…)` of some models knows no devices
        fake = FakeTensor(self._mode, form, device, requires_grad=trains, _is_param=True)
        assert isinstance(fake, nn.Parameter)
        return fake

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return a fake tensor of a shape."""
        return self.tensor(torch.empty(shape, dtype=dtype, device="meta"))

    def fake(self, module: nn.Module) -> nn.Module:
        """Replace parameters and buffers on the meta device by fake ones, tied ones once."""
        made: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}  # the old one keeps its id in use
        for owner in module.modules():
            for name, parameter in owner._parameters.items():
                if parameter is None:
                    continue
                if id(parameter) not in made:
                    made[id(parameter)] = self.parameter(parameter), parameter
                owner._parameters[name] = made[id(parameter)][0]
            for name, buffer in owner._buffers.items():
                if buffer is not None and buffer.is_meta:
                    owner._buffers[name] = found = self.tensor(buffer)
                    vars(found)[BUFFER] = True
        return module

    @property
    def is_watched(self) -> bool:
        """Whether something is counted just now."""
        return self._answers.watch is not None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Let real code run on fake tensors: what it asks of their values is answered with one."""
        if self._is_running:
            yield
            return
        self._is_running = True
        try:
            with self._answers:
                yield
        finally:
            self._is_running = False

    @contextmanager
    def watched(self, count: Count) -> Iterator[None]:
        """Let a count see what is run inside of `running`, without the cost of a mode of its own."""
        assert self._is_running, "nothing would be seen"
        assert self._answers.watch is None, "only one count at a time"
        self._answers.watch = count
        try:
            yield
        finally:
            self._answers.watch = None

    @contextmanager
    def throughout(self) -> Iterator[None]:
        """As `running`, and what is made anew is fake, too."""
        with self._mode, _Answers(Known(self._mode), Values()):
            yield


def is_fake(tensor: Tensor) -> bool:
    """Whether a tensor has no values."""
    return isinstance(tensor, FakeTensor)


class _Answers(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Answers what code asks of values that do not exist.

    A number read from a fake tensor is one: losses, norms and "is all of it finite" are then what no
    code objects to. Tensors are equal where they must be (`Values`). A choice of entries by a mask
    becomes one by places, whose number is known: of a mask without values all are chosen. The place
    of the largest entry is each in turn, and what is sorted stands as it stood.

    Attributes:
        watch: counts the operations, if anything does.
    """

    def __init__(self, known: Known, values: Values) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.watch: Count | None = None
        self._known, self._values = known, values
        self._operations = Operations(_RULES)

    def telling(self, spans: Sequence[slice]) -> Iterator[slice]:
        """Yield the first two and the last of equal spans, and what follows; see `Telling`.

        In the second, what the one before has left behind is given up, as in all that come after it.
        """
        count = sum(span.stop - span.start == spans[0].stop for span in spans)
        if count < 4:
            yield from spans
            return
        yield spans[0]
        before = None if self.watch is None else self.watch.so_far
        yield spans[1]
        if self.watch is not None and before is not None:
            self.watch.again(before, count - 3)
        yield from spans[count - 1 :]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here, and PyTorch's guard against it doubles the cost of an operation."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _DEVICE and is_fake(args[0]):
            return args[0].fake_device
        kwargs = kwargs or {}
        if func is aten.eye.default:  # as wide as a layer, for DoRA: gigabytes for all of them
            with self._known.mode:
                return func(*args, **kwargs)
        if self.watch is None and FakeTensor not in types:
            return func(*args, **kwargs)
        operation = self._operations.of(func)
        if operation.is_composite:
            with self:
                return func._op_dk(DispatchKey.CompositeImplicitAutograd, *args, **kwargs)
        if self.watch is None or func.namespace == "prim":
            result, call = self._answer(operation, args, kwargs)
            self._values.note(operation, args, kwargs, result, call)
            return result
        return self.watch.follow(self._watched, func, args, kwargs)

    def _watched(self, func: Any, args: Any, kwargs: Any) -> Any:
        return self._answer(self._operations.of(func), args, kwargs)[0]

    def _answer(self, operation: Operation, args: Any, kwargs: Any) -> tuple[Any, Call | None]:
        """Return the result of an operation, and the call if that is remembered."""
        func = operation.func
        if operation.rule is not None and any(map(_has_fake, args)):
            found = operation.rule(self._values, args)
            if found is not None:
                return found, None
            args = (args[0], _places(args[1]), *args[2:])
        is_real = operation.is_mutable and isinstance(args[0], Tensor) and not is_fake(args[0])
        if is_real and any(map(_has_fake, args[1:])):
            raise TypeError(f"{func}: a tensor with values cannot take any from one without")
        result, call = self._known.call(operation, args, kwargs)
        if operation.sorts and is_fake(args[0]):
            order = torch.arange(result[1].shape[-1]).expand(result[1].shape).contiguous()
            return type(result)((result[0], order)), None
        return result, call


_BY_MASK = (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_)


def _number(values: Values, args: Any) -> Any:
    return _one(args[0].dtype) if is_fake(args[0]) else None


def _equal(values: Values, args: Any) -> Any:
    return values.equal(*args[:2])


def _all_places(values: Values, args: Any) -> Any:
    return torch.ones(args[0].shape, dtype=torch.bool).nonzero()


def _largest(values: Values, args: Any) -> Any:
    tensor, dim = args[0], args[1] if len(args) > 1 else None
    if dim is None:
        return torch.tensor(values.turn(tensor.numel()))
    shape = list(tensor.shape)
    shape[dim] = 1
    keeps = len(args) > 2 and args[2]
    found = torch.full(shape, values.turn(tensor.shape[dim]))
    return found if keeps else found.squeeze(dim)


def _grouped(values: Values, args: Any) -> Any:
    """A product for each expert; PyTorch's own rule knows that of one dtype alone."""
    left, right = args[:2]
    if left.dim() == right.dim() == 2:  # of columns that are dealt out
        return left.new_empty(len(args[2]), left.shape[0], right.shape[1])
    rows = left.shape[-2:-1] if 2 in (left.dim(), right.dim()) else left.shape[:-1]
    return left.new_empty(*rows, right.shape[-1])


def _as_it_is(values: Values, args: Any) -> Any:
    return None


_RULES: dict[Any, Any] = {
    aten._local_scalar_dense: _number,
    aten.equal: _equal,
    aten.nonzero: _all_places,
    aten.argmax: _largest,
    aten.argmin: _largest,
    aten._grouped_mm: _grouped,
    **dict.fromkeys(_BY_MASK, _as_it_is),
}


def _has_fake(value: Any) -> bool:
    if isinstance(value, FakeTensor):
        return True
    return isinstance(value, list | tuple) and any(map(_has_fake, value))


def _one(dtype: torch.dtype) -> bool | int | float:
    if dtype == torch.bool:
        return True
    return 1.0 if dtype.is_floating_point else 1


def _places(indices: list[Tensor | None]) -> list[Tensor | None]:
    """Replace masks among indices by the places of what they choose."""
    found: list[Tensor | None] = []
    for index in indices:
        if index is None or index.dtype != torch.bool:
            found.append(index)
        else:
            mask = torch.ones(index.shape, dtype=torch.bool) if is_fake(index) else index
            found += mask.nonzero(as_tuple=True)
    return found
