"""Gradients of each example alone, in one backward pass.

Of a linear layer, `y = x W'`, an example's gradient of `W` is the sum over its positions of `g x'`,
where `g` is that of `y` (Goodfellow, 2015, arXiv 1510.01799). LoRA's factors and task heads are linear
layers. Nothing is wrapped: hooks look at what goes in and what comes back, wherever parameters are
mounted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

Rows = dict[str, Tensor]
"""Gradients by name of the parameter, `(examples, *shape)`."""


def are_linear(module: nn.Module, state: Mapping[str, nn.Parameter]) -> bool:
    """Whether all that trains of a state stands in linear layers alone, as it is mounted."""
    wanted = {id(p) for p in state.values() if p.requires_grad}
    places = [(layer, p) for layer in module.modules() for p in layer._parameters.values()]
    owners = [layer for layer, p in places if p is not None and id(p) in wanted]
    found = {id(p) for _, p in places if p is not None} & wanted
    return found == wanted and all(type(layer) is nn.Linear for layer in owners)


@contextmanager
def rows_of(module: nn.Module, state: Mapping[str, nn.Parameter]) -> Iterator[Rows]:
    """Fill a mapping with the gradients of each example, in the backward passes that are in the block.

    The loss must be a sum over examples, and the first dimension of what goes into each layer must be
    theirs.
    """
    names = {id(p): name for name, p in state.items() if p.requires_grad}
    found: Rows = {}

    def add(parameter: Tensor, rows: Tensor) -> None:
        name = names[id(parameter)]
        found[name] = found[name] + rows if name in found else rows

    def look(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(layer, nn.Linear)
        if not output.requires_grad:
            return
        given, weight, bias = args[0].detach(), layer.weight, layer.bias

        def back(gradient: Tensor) -> None:
            x, g = (t.reshape(len(t), -1, t.shape[-1]) for t in (given, gradient))
            if id(weight) in names:
                add(weight, torch.einsum("bto,bti->boi", g, x.to(g.dtype)))
            if id(bias) in names:
                add(bias, g.sum(1))

        output.register_hook(back)  # type: ignore[no-untyped-call]

    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    trained = [
        layer
        for layer in layers
        if any(p is not None and id(p) in names for p in layer._parameters.values())
    ]
    hooks = [layer.register_forward_hook(look) for layer in trained]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
