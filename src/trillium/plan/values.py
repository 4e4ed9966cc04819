"""Which tensors without values would be equal: those that were made in the same way of equal ones."""

from __future__ import annotations

import weakref
from ctypes import string_at
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

aten = torch.ops.aten
_COPIES = (aten._to_copy.default, aten.clone.default)
_SMALL = 2**18  # bytes of a real tensor; of larger ones the storage stands for the values


class Values:
    """Numbers values: a copy has that of its source, and what is written to gets a new one."""

    def __init__(self) -> None:
        self._numbers: dict[int, tuple[object, int, Any]] = {}  # number, version, end of a storage
        self._made: dict[Any, object] = {}
        self._turns: dict[int, int] = {}
        self._real: dict[int, torch.UntypedStorage] = {}

    def of(self, tensor: Tensor) -> Any:
        """Return something that is equal for equal values."""
        place = tuple(tensor.shape), tensor.stride(), tensor.storage_offset()
        if isinstance(tensor, FakeTensor):
            return (self._number(tensor), *place)
        storage = tensor.untyped_storage()
        if storage.nbytes() <= _SMALL:  # read without an operation, which would be looked at, too
            return tensor.dtype, *place, string_at(storage.data_ptr(), storage.nbytes())
        self._real[id(storage)] = storage  # so that nothing else gets its identity
        return *place, id(storage), _version(tensor)

    def equal(self, left: Tensor, right: Tensor) -> bool:
        """Whether two tensors are known to be equal."""
        return left.shape == right.shape and self.of(left) == self.of(right)

    def turn(self, count: int) -> int:
        """Return one of so many places; they come in turn."""
        self._turns[count] = self._turns.get(count, -1) + 1
        return self._turns[count] % count

    def note(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Note how a tensor was made."""
        if not _is_pure(func) or (_may_draw(func) and draws(func, args, kwargs)):
            return
        made = [result] if isinstance(result, Tensor) else result
        if not isinstance(made, list | tuple) or not made:
            return
        given = {id(t.untyped_storage()) for t in args if isinstance(t, FakeTensor)}
        if not isinstance(made[0], FakeTensor) or id(made[0].untyped_storage()) in given:
            return  # views
        if func in _COPIES and _is_whole_copy(args[0], result):
            self._set(result, self._number(args[0]))
            return
        try:
            key = func, self._key(args), self._key(tuple(kwargs.items()))
            number = self._made.setdefault(key, object())
        except TypeError:  # an argument that cannot be told from others
            return
        for place, tensor in enumerate(made):
            if isinstance(tensor, FakeTensor):
                self._set(tensor, (number, place))

    def _number(self, tensor: Tensor) -> object:
        found = self._numbers.get(id(tensor.untyped_storage()))
        if found is None or found[1] != _version(tensor):
            return self._set(tensor, object())
        return found[0]

    def _set(self, tensor: Tensor, number: object) -> object:
        untyped = tensor.untyped_storage()
        key = id(untyped)
        gone = weakref.ref(untyped, lambda _: self._numbers.pop(key, None))
        self._numbers[key] = number, _version(tensor), gone
        return number

    def _key(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self.of(value)
        if isinstance(value, list | tuple):
            return tuple(map(self._key, value))
        hash(value)
        return type(value), value


@cache
def _is_pure(func: Any) -> bool:
    return not func._schema.is_mutable


@cache
def _may_draw(func: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in func.tags


def draws(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether an operation draws random numbers; fused attention without dropout does not."""
    if not _may_draw(func):
        return False
    arguments = func._schema.arguments
    given = {argument.name: argument.default_value for argument in arguments}
    given |= {a.name: value for a, value in zip(arguments, args, strict=False)} | kwargs
    return bool(given.get("dropout_p", 1.0) > 0)


def _is_whole_copy(source: Any, made: Tensor) -> bool:
    """Whether a copy has all of its source's storage, in the same form."""
    return (
        isinstance(source, FakeTensor)
        and source.dtype == made.dtype
        and source.storage_offset() == 0
        and source.stride() == made.stride()
        and made.nbytes == source.untyped_storage().nbytes()
    )


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
