"""What operations on fake tensors return is remembered, since asking PyTorch again takes far longer.

A model is one block many times, and a plan runs it many times, so nearly every operation has been seen
before with arguments of the same shapes. Only such are remembered as return new tensors, views, or the
tensor that they write to, whatever the values; all others go their way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_impls import op_implementations_checks
from torch._subclasses.fake_tensor import (
    FakeTensor,
    FakeTensorMode,
    in_kernel_invocation_manager,
)

_VALUE_TAGS = (
    torch.Tag.data_dependent_output,
    torch.Tag.dynamic_output_shape,
    torch.Tag.inplace_view,
)
_PLAIN = (
    *(int, float, bool, str, type(None)),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format),
)


@dataclass(frozen=True)
class _Form:
    """The form of a tensor."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


class _UnknownError(Exception):
    """An argument or a result is of a kind that is not remembered."""


class Known:
    """Calls operations, and remembers what comes back.

    Args:
        mode: makes fake tensors.
    """

    def __init__(self, mode: FakeTensorMode) -> None:
        self._mode = mode
        self._results: dict[Any, Any] = {}
        self._like = vars(FakeTensor(mode, torch.empty(0, device="meta"), _CPU))

    def fake(self, meta: Tensor) -> FakeTensor:
        """Return a fake tensor on the CPU in place of one on the meta device.

        It has the attributes of any other; to set them one by one, as the class does, takes longer
        than all the rest.
        """
        if type(meta) is not Tensor:  # a fake one of the meta device, say
            return FakeTensor(self._mode, meta, _CPU)
        made = Tensor._make_subclass(
            FakeTensor, meta, False, dispatch_device=True, device_for_backend_keys=_CPU
        )
        torch._C._set_throw_on_mutable_data_ptr(made)
        vars(made).update(self._like)
        return made

    def call(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Return what an operation returns."""
        kind = _kind(func)
        if kind == "views" and isinstance(args[0], FakeTensor):
            return self._view(func, args, kwargs)
        if kind is None and not _is_by_places(func, args):
            return func(*args, **kwargs)
        try:
            tensors: list[Tensor] = []
            key: Any = (func, _key(args, tensors), _key(tuple(kwargs.items()), tensors))
        except _UnknownError:
            return func(*args, **kwargs)
        if kind == "views" or not any(isinstance(tensor, FakeTensor) for tensor in tensors):
            return func(*args, **kwargs)
        if kind == "writes":
            return self._write(func, args, kwargs, key, tensors)
        if key in self._results:
            return self._made(self._results[key])
        result = self._run(func, args, kwargs, tensors)
        storages = {id(tensor.untyped_storage()) for tensor in tensors}
        with suppress(_UnknownError):
            self._results[key] = _forms(result, storages)
        return result

    def _write(
        self,
        func: Any,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        key: Any,
        tensors: Sequence[Tensor],
    ) -> Any:
        """Return the tensor that is written to, which stays what it is."""
        if key in self._results and isinstance(args[0], FakeTensor):
            return args[0]
        result = self._run(func, args, kwargs, tensors)
        if result is args[0]:
            self._results[key] = True
        return result

    def _view(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Return views of a fake tensor: their geometry is the same on all devices."""
        with in_kernel_invocation_manager(self._mode):
            found = func(*args, **kwargs)
        return self._wrapped(found, args[0].fake_device)

    def _run(
        self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], tensors: Sequence[Tensor]
    ) -> Any:
        """Return what an operation returns that is seen for the first time.

        Where it has a kernel for tensors without values, and PyTorch no other rule for fake ones, this
        kernel is called at once; the mode would do so in the end. Copies have the form of their source.
        """
        copies = func in _COPIES and kwargs.get("device") in (None, _CPU)
        if not (copies or _has_kernel(func)) or not all(map(_is_on_cpu, tensors)):
            return func(*args, **kwargs)
        try:
            with in_kernel_invocation_manager(self._mode):
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
        return self.fake(found) if device == _CPU else FakeTensor(self._mode, found, device)

    def _made(self, form: Any) -> Any:
        """Return a new tensor of a form."""
        if isinstance(form, _Form):
            meta = torch.empty_strided(form.shape, form.stride, dtype=form.dtype, device="meta")
            return self.fake(meta)
        if isinstance(form, list | tuple):
            return type(form)(self._made(part) for part in form)
        return form


_CPU = torch.device("cpu")


@cache
def _kind(func: Any) -> str | None:
    """Return whether an operation `makes` new tensors, `views` its first argument or `writes` to it."""
    if any(tag in func.tags for tag in _VALUE_TAGS) or func.namespace != "aten":
        return None
    if func is torch.ops.aten._unsafe_view.default:
        return "views"  # shares the storage, though its schema does not say so
    name, has_kernel = func.name(), torch._C._dispatch_has_kernel_for_dispatch_key
    if has_kernel(name, "CompositeImplicitAutograd"):
        return None  # may return an argument as it is
    first, *others = [argument.alias_info for argument in func._schema.arguments] or [None]
    returned = [found.alias_info for found in func._schema.returns]
    if any(found is not None for found in others):
        return None
    if first is None:
        return "makes" if returned and all(found is None for found in returned) else None
    if not first.is_write and returned and all(found is not None for found in returned):
        return "views"
    writes = first.is_write and len(returned) == 1 and name.split(".")[0].endswith("_")
    return "writes" if writes else None


@cache
def _has_kernel(func: Any) -> bool:
    """Whether the form of a result is what the kernel for the meta device says, and it alone."""
    if any(argument.name == "device" for argument in func._schema.arguments):
        return False
    is_ruled = any(applies(func) for applies, _ in op_implementations_checks)
    return not is_ruled and torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "Meta")


_COPIES = {
    torch.ops.aten._to_copy.default,
    torch.ops.aten.clone.default,
    torch.ops.aten.zeros_like.default,
    torch.ops.aten.ones_like.default,
}


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


def _key(value: Any, tensors: list[Tensor]) -> Any:
    """Return what the form of a result depends on; tensors are added to a list.

    Raises:
        _UnknownError: it may depend on more.
    """
    if isinstance(value, Tensor):
        if not isinstance(value, FakeTensor) and value.device.type != "cpu":
            raise _UnknownError
        tensors.append(value)
        return value.shape, value.stride(), value.dtype
    if isinstance(value, list | tuple):
        return tuple(_key(part, tensors) for part in value)
    if isinstance(value, _PLAIN):
        return type(value), value
    raise _UnknownError


def _forms(result: Any, storages: set[int]) -> Any:
    """Return the form of a new result.

    Raises:
        _UnknownError: it is another thing.
    """
    if isinstance(result, FakeTensor):
        if id(result.untyped_storage()) in storages or result.storage_offset():
            raise _UnknownError
        return _Form(tuple(result.shape), result.stride(), result.dtype)
    if isinstance(result, list | tuple):
        return type(result)(_forms(part, storages) for part in result)
    if result is None or type(result) in (int, float, bool):
        return result
    raise _UnknownError
