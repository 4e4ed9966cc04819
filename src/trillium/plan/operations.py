"""What there is to know of an operation of PyTorch whatever its arguments, found out once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch._subclasses.fake_impls import op_implementations_checks

from trillium.training.counting import is_made_of_others

aten = torch.ops.aten
_VALUE_TAGS = (
    torch.Tag.data_dependent_output,
    torch.Tag.dynamic_output_shape,
    torch.Tag.inplace_view,
)
_COPIES = (aten._to_copy.default, aten.clone.default)
_LIKES = (aten.zeros_like.default, aten.ones_like.default)


@dataclass(frozen=True, slots=True)
class Form:
    """The form of a tensor."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def dense(cls, shape: Sequence[int], dtype: torch.dtype) -> Form:
        """Return the form of a contiguous tensor."""
        strides = accumulate(reversed(shape[1:]), lambda size, own: size * max(own, 1), initial=1)
        return cls(tuple(shape), tuple(reversed([*strides])) if shape else (), dtype)


class Operation:
    """An operation, and what is known of it.

    Attributes:
        func: the operation.
        kind: whether it `makes` new tensors, `views` its first argument or `writes` to it; `None` of
            all that is not remembered.
        is_composite: whether a CPU would run it as a sequence of others.
        is_mutable: whether it writes to an argument.
        is_copy: whether what it returns has the values of its first argument.
        has_form: whether what it returns has the form of its first argument, but for what it is told.
        has_kernel: whether the form of a result is what the kernel for the meta device says, and it
            alone.
        may_draw: whether it may draw random numbers.
        direct: gives the form of a result at once, or `None` where it cannot tell.
        first: the same for what is remembered, the first time.
        writes_by_place: whether it writes to entries by their places.
        sorts: whether it returns entries in order, and their places.
        rule: how what it asks of values is answered, if it asks.
    """

    def __init__(self, func: Any, rule: Any) -> None:
        self.func, self.rule = func, rule
        self.kind = _kind(func)
        self.is_composite = is_made_of_others(func, "CPU")
        self.is_mutable: bool = func._schema.is_mutable
        self.is_copy = func in _COPIES
        self.has_form = self.is_copy or func in _LIKES
        self.has_kernel = _has_kernel(func)
        self.direct, self.first = _DIRECT.get(func), _FIRST.get(func)
        self.writes_by_place = func is aten.index_put_.default
        self.sorts = func.overloadpacket in (aten.sort, aten.topk)
        self.may_draw = torch.Tag.nondeterministic_seeded in func.tags

    def draws(self, args: Any, kwargs: Any) -> bool:
        """Whether it draws random numbers; fused attention without dropout does not."""
        if not self.may_draw:
            return False
        arguments = self.func._schema.arguments
        given = {argument.name: argument.default_value for argument in arguments}
        given |= {a.name: value for a, value in zip(arguments, args, strict=False)} | kwargs
        return bool(given.get("dropout_p", 1.0) > 0)


class Operations:
    """What is known of operations, by their identity: to hash one takes longer than to look it up.

    Args:
        rules: how what they ask of values is answered, by operation without its overload.
    """

    def __init__(self, rules: Mapping[Any, Any]) -> None:
        self._rules, self._known = rules, dict[int, Operation]()

    def of(self, func: Any) -> Operation:
        """Return what is known of an operation."""
        found = self._known.get(id(func))
        if found is None:
            found = Operation(func, self._rules.get(func.overloadpacket))
            self._known[id(func)] = found
        return found


def _kind(func: Any) -> str | None:
    if any(tag in func.tags for tag in _VALUE_TAGS) or func.namespace != "aten":
        return None
    if func is aten._unsafe_view.default:
        return "views"  # shares the storage, though its schema does not say so
    if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
        return None  # may return an argument as it is
    first, *others = [argument.alias_info for argument in func._schema.arguments] or [None]
    returned = [found.alias_info for found in func._schema.returns]
    if any(found is not None for found in others):
        return None
    if first is None:
        return "makes" if returned and all(found is None for found in returned) else None
    if not first.is_write and returned and all(found is not None for found in returned):
        return "views"
    writes = first.is_write and len(returned) == 1 and func.name().split(".")[0].endswith("_")
    return "writes" if writes else None


def _has_kernel(func: Any) -> bool:
    if any(argument.name == "device" for argument in func._schema.arguments):
        return False
    is_ruled = any(applies(func) for applies, _ in op_implementations_checks)
    return not is_ruled and torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "Meta")


# Of what the form is clear. How many places are chosen, and how long new tensors are, depends on texts:
# few such calls are met again, and to ask PyTorch takes a millisecond.


def _chosen(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Form | None:
    """Entries at places along the first dimensions."""
    whole, places = args[:2]
    along = [own for own in places if own is not None and own.dtype == torch.int64]
    numbers = {own.numel() for own in along if own.dim() == 1}
    rest = whole.shape[len(places) :]
    found = Form.dense((*numbers, *rest), whole.dtype)
    is_plain = len(along) == len(places) and len(numbers) == 1
    return found if is_plain and whole.stride()[len(places) :] == found.stride[1:] else None


def _new(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Form | None:
    """A tensor like another one but for its size."""
    if not {*kwargs} <= {"dtype", "device", "pin_memory"} or kwargs.get("device") not in _ON_CPU:
        return None
    return Form.dense(args[1], kwargs.get("dtype") or args[0].dtype)


def _normalised(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Form, ...] | None:
    """What a layer norm returns: the rows, and the mean and the deviation of each."""
    rows, dtypes = args[0], {own.dtype for own in args[:4] if isinstance(own, torch.Tensor)}
    if not rows.is_contiguous() or dtypes != {torch.float32}:
        return None
    shape = (*rows.shape[: -len(args[1])], *(1 for _ in args[1]))
    stats = Form.dense(shape, torch.float32)
    return Form.dense(rows.shape, torch.float32), stats, stats


def _by_entry(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Form | None:
    """What is computed entry by entry of dense floating-point tensors of one dtype."""
    tensors = [own for own in args if isinstance(own, torch.Tensor)]
    dtypes = {own.dtype for own in tensors}
    if len(dtypes) > 1 or not all(own.is_contiguous() for own in tensors):
        return None
    dtype, largest = dtypes.pop(), max(tensors, key=lambda own: own.dim())
    shapes = [own.shape for own in tensors if own.dim()]
    same = dtype.is_floating_point and all(shape == largest.shape for shape in shapes)
    return Form.dense(largest.shape, dtype) if same and _are_numbers(args, kwargs) else None


def _are_numbers(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether nothing but tensors, real numbers and words is given."""
    plain = torch.Tensor, bool, int, float, str
    return all(isinstance(own, plain) for own in (*args, *kwargs.values()))


_ON_CPU = (None, torch.device("cpu"))
_DIRECT: dict[Any, Callable[[Sequence[Any], Mapping[str, Any]], Any]] = {
    aten.index.Tensor: _chosen,
    **dict.fromkeys((aten.new_empty.default, aten.new_zeros.default, aten.new_full.default), _new),
}
_FIRST: dict[Any, Callable[[Sequence[Any], Mapping[str, Any]], Any]] = {
    aten.native_layer_norm.default: _normalised,
    **dict.fromkeys(
        (
            *(aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor),
            *(aten.mul.Scalar, aten.div.Scalar, aten.neg.default, aten.pow.Tensor_Scalar),
            *(aten.silu.default, aten.gelu.default, aten.gelu_backward.default),
            *(aten.tanh.default, aten.tanh_backward.default),
        ),
        _by_entry,
    ),
}
