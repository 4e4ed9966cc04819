"""What there is to know of an operation of PyTorch whatever its arguments, found out once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch._subclasses.fake_impls import op_implementations_checks

from trillium.training.meters import is_made_of_others

aten = torch.ops.aten
_VALUE_TAGS = (
    torch.Tag.data_dependent_output,
    torch.Tag.dynamic_output_shape,
    torch.Tag.inplace_view,
)
_COPIES = (aten._to_copy.default, aten.clone.default)
_LIKES = (aten.zeros_like.default, aten.ones_like.default)


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
