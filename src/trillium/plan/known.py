"""What operations on fake tensors return is remembered, since asking PyTorch again takes far longer.

A model is one block many times, and a plan runs it many times, so nearly every operation has been seen
before with arguments of the same shapes. Only such are remembered as return new tensors, views, or the
tensor that they write to, whatever the values; all others go their way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    FakeTensor,
    FakeTensorMode,
    in_kernel_invocation_manager,
)

from trillium.plan.operations import Form, Operation

_CPU = torch.device("cpu")
_PLAIN = {
    *(int, float, bool, str, type(None)),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format),
}


class _UnknownError(Exception):
    """An argument or a result is of a kind that is not remembered."""


@dataclass(frozen=True, slots=True)
class Call:
    """What is remembered of a call.

    Attributes:
        key: all that the form of its result depends on.
        tensors: its arguments that are tensors, in their order.
    """

    key: Any
    tensors: Sequence[Tensor]


class Known:
    """Calls operations, and remembers what comes back.

    Attributes:
        mode: makes fake tensors.
    """

    def __init__(self, mode: FakeTensorMode) -> None:
        self.mode = mode
        self._results: dict[Any, Any] = {}
        self._like = vars(FakeTensor(mode, torch.empty(0, device="meta"), _CPU))

    def fake(self, meta: Tensor) -> FakeTensor:
        """Return a fake tensor on the CPU in place of one on the meta device.

        It has the attributes of any other; to set them one by one, as the class does, takes longer
        than all the rest.
        """
        if type(meta) is not Tensor:  # a fake one of the meta device, say
            return FakeTensor(self.mode, meta, _CPU)
        made = Tensor._make_subclass(
            FakeTensor, meta, False, dispatch_device=True, device_for_backend_keys=_CPU
        )
        torch._C._set_throw_on_mutable_data_ptr(made)
        made.__dict__.update(self._like)
        return made

    def call(
        self, operation: Operation, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[Any, Call | None]:
        """Return what an operation returns; and of new tensors that are remembered, the call."""
        kind, func = operation.kind, operation.func
        if operation.writes_by_place and type(args[0]) is FakeTensor:
            return args[0], None
        if operation.direct is not None and type(args[0]) is FakeTensor:
            form = operation.direct(args, kwargs)
            if form is not None:
                return self._made(form), None
        if kind == "views" and isinstance(args[0], FakeTensor):
            return self._view(func, args, kwargs), None
        if kind == "views" or (kind is None and not _is_by_places(func, args)):
            return func(*args, **kwargs), None
        tensors: list[Tensor] = []
        try:
            key: Any = (id(func), _key(args, tensors))
            if kwargs:
                key = (*key, _key(tuple(kwargs.items()), tensors))
        except _UnknownError:
            return func(*args, **kwargs), None
        if not any(isinstance(tensor, FakeTensor) for tensor in tensors):
            return func(*args, **kwargs), None
        known = self._results.get(key)
        if kind == "writes":
            if known is not None and isinstance(args[0], FakeTensor):
                return args[0], None  # it stays what it is
            result = self._run(operation, args, kwargs, tensors)
            if result is args[0]:
                self._results[key] = True
            return result, None
        if known is not None:
            return self._made(known), Call(key, tensors)
        result = self._run(operation, args, kwargs, tensors)
        storages = {id(tensor.untyped_storage()) for tensor in tensors}
        with suppress(_UnknownError):
            self._results[key] = _forms(result, storages)
            return result, Call(key, tensors)
        return result, None

    def _view(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Return views of a fake tensor: their geometry is the same on all devices."""
        with in_kernel_invocation_manager(self.mode):
            found = func(*args, **kwargs)
        return self._wrapped(found, args[0].fake_device)

    def _run(
        self,
        operation: Operation,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        tensors: Sequence[Tensor],
    ) -> Any:
        """Return what an operation returns that is seen for the first time.

        Where it has a kernel for tensors without values, and PyTorch no other rule for fake ones, this
        kernel is called at once; the mode would do so in the end.
        """
        func = operation.func
        form = None if operation.first is None else operation.first(args, kwargs)
        if form is not None:
            return self._made(form)
        copies = operation.has_form and kwargs.get("device") in (None, _CPU)
        if not (copies or operation.has_kernel) or not all(map(_is_on_cpu, tensors)):
            return func(*args, **kwargs)
        try:
            with in_kernel_invocation_manager(self.mode):
                if copies:
                    options = {k: v for k, v in kwargs.items() if k in ("dtype", "memory_format")}
                    found: Any = torch.empty_like(_without_values(args[0]), **options)
                else:
                    found = func(*_without_values(args), **kwargs)
        except NotImplementedError:
            return func(*args, **kwargs)
        return self._wrapped(found, _CPU)

    def _wrapped(self, found: Any, device: torch.device) -> Any:
        """Return fake tensors of a device in place of new ones on the meta device."""
        if isinstance(found, list | tuple):
            return type(found)(self._wrapped(part, device) for part in found)
        if type(found) is not Tensor:
            return found
        return self.fake(found) if device == _CPU else FakeTensor(self.mode, found, device)

    def _made(self, form: Any) -> Any:
        """Return a new tensor of a form."""
        if isinstance(form, Form):
            meta = torch.empty_strided(form.shape, form.stride, dtype=form.dtype, device="meta")
            return self.fake(meta)
        if isinstance(form, list | tuple):
            return type(form)(self._made(part) for part in form)
        return form


def _is_on_cpu(tensor: Tensor) -> bool:
    return tensor.fake_device == _CPU if isinstance(tensor, FakeTensor) else True  # see `_key`


def _without_values(value: Any) -> Any:
    """Return arguments with tensors of the meta device in place of real ones."""
    if isinstance(value, list | tuple):
        return type(value)(map(_without_values, value))
    if isinstance(value, Tensor) and not isinstance(value, FakeTensor):
        form = value.shape, value.stride()
        return torch.empty_strided(*form, dtype=value.dtype, device="meta")
    return value


def _is_by_places(func: Any, args: Sequence[Any]) -> bool:
    """Whether an operation chooses entries by their places, whose number is known, and not by masks."""
    by_value = (torch.bool, torch.uint8)
    return func is torch.ops.aten.index.Tensor and not any(
        index is not None and index.dtype in by_value for index in args[1]
    )


def _key(values: Sequence[Any], tensors: list[Tensor]) -> Any:
    """Return what the form of a result depends on; tensors are added to a list.

    Raises:
        _UnknownError: it may depend on more.
    """
    found: list[Any] = []
    for value in values:
        kind = type(value)
        if kind is FakeTensor or isinstance(value, Tensor):
            if kind is not FakeTensor and value.device.type != "cpu":
                raise _UnknownError
            tensors.append(value)
            found += (value.shape, value.stride(), value.dtype)
        elif kind in _PLAIN:
            found += (kind, value)
        elif isinstance(value, list | tuple):
            found.append(_key(value, tensors))
        else:
            raise _UnknownError
    return tuple(found)


def _forms(result: Any, storages: set[int]) -> Any:
    """Return the form of a new result.

    Raises:
        _UnknownError: it is another thing.
    """
    if isinstance(result, FakeTensor):
        if id(result.untyped_storage()) in storages or result.storage_offset():
            raise _UnknownError
        return Form(tuple(result.shape), result.stride(), result.dtype)
    if isinstance(result, list | tuple):
        return type(result)(_forms(part, storages) for part in result)
    if result is None or type(result) in (int, float, bool):
        return result
    raise _UnknownError
