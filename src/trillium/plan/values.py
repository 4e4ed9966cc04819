"""Which tensors without values would be equal: those that were made in the same way of equal ones."""

from __future__ import annotations

from collections.abc import Iterable
from ctypes import string_at
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from trillium.plan.known import Call
from trillium.plan.operations import Operation

_NUMBER = "trillium_value"  # marks the storages of fake tensors, with the version of their values
_SMALL = 2**18  # bytes of a real tensor; of larger ones the storage stands for the values


class Values:
    """Numbers values: a copy has that of its source, and what is written to gets a new one."""

    def __init__(self) -> None:
        self._made: dict[Any, object] = {}
        self._turns: dict[int, int] = {}
        self._real: dict[int, torch.UntypedStorage] = {}

    def forget(self) -> None:
        """Forget how tensors were made: those that are made from now on are equal to none before."""
        self.__init__()  # type: ignore[misc]

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

    def note(
        self, operation: Operation, args: Any, kwargs: Any, result: Any, call: Call | None
    ) -> None:
        """Note how a tensor was made.

        Args:
            call: what is remembered of the operation that made it, if anything is.
        """
        if operation.kind in ("views", "writes") or operation.is_mutable:
            return
        made = [result] if isinstance(result, Tensor) else result
        if not isinstance(made, list | tuple) or not made or not isinstance(made[0], FakeTensor):
            return
        if operation.draws(args, kwargs):
            return
        if call is None and id(made[0].untyped_storage()) in _storages(args):
            return  # views
        if operation.is_copy and _is_whole_copy(args[0], result):
            self._set(result, self._number(args[0]))
            return
        try:
            if call is None:
                key: Any = operation.func, self._key(args), self._key(tuple(kwargs.items()))
            else:
                key = call.key, tuple(map(self._value, call.tensors))
        except TypeError:  # an argument that cannot be told from others
            return
        number = self._made.setdefault(key, object())
        for place, tensor in enumerate(made):
            if isinstance(tensor, FakeTensor):
                self._set(tensor, (number, place))

    def _value(self, tensor: Tensor) -> Any:
        """Return the same as `of` where the form of the tensor is known."""
        if type(tensor) is FakeTensor:
            return self._number(tensor), tensor.storage_offset()
        return self.of(tensor)

    def _number(self, tensor: Tensor) -> object:
        found = vars(tensor.untyped_storage()).get(_NUMBER)
        if found is None or found[1] != _version(tensor):
            return self._set(tensor, object())
        return found[0]

    def _set(self, tensor: Tensor, number: object) -> object:
        # PyTorch keeps the Python object of a storage for as long as the storage lives.
        vars(tensor.untyped_storage())[_NUMBER] = number, _version(tensor)
        return number

    def _key(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self.of(value)
        if isinstance(value, list | tuple):
            return tuple(map(self._key, value))
        hash(value)
        return type(value), value


def change(tensors: Iterable[Tensor]) -> None:
    """Let tensors without values be known to have others than before."""
    for tensor in tensors:
        vars(tensor.untyped_storage()).pop(_NUMBER, None)


def _storages(values: Any) -> set[int]:
    return {id(t.untyped_storage()) for t in values if isinstance(t, FakeTensor)}


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
