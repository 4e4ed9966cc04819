"""The last layer of a language model apart from the rest, so that logits need not exist all at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from trillium.models.blocks import base_model
from trillium.models.heads import without_layer


@contextmanager
def before_vocabulary(module: nn.Module) -> Iterator[nn.Module]:
    """Make a causal language model return what its last layer would see; yield that layer.

    Within the block, `module(**inputs).logits` are hidden states `(batch, seq, hidden)`. No
    parameter is touched.
    """
    layer = output_layer(module)
    name = next(name for name, found in module.named_modules() if found is layer)
    with without_layer(module, name):
        yield layer


def ends_in_vocabulary(module: nn.Module) -> bool:
    """Whether the logits of a causal language model are what its last layer gives, no more.

    Some models scale or cap them afterwards, which cannot be told from their class; so some tokens
    go through the model, once, and are looked at.
    """
    if module not in _ENDS:
        _ENDS[module] = _looks_so(module)
    return _ENDS[module]


_ENDS: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


@torch.no_grad()
def _looks_so(module: nn.Module) -> bool:
    layer = output_layer(module)
    if layer is None:
        return False
    seen: list[Tensor] = []
    handle = layer.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    was_training = module.training
    device = next(module.parameters()).device
    try:
        # Several tokens: that of padding may be all zeros, which no scale or cap would change.
        logits = module.eval()(input_ids=torch.arange(8, device=device)[None]).logits
    finally:
        handle.remove()
        module.train(was_training)
    return len(seen) == 1 and seen[0].shape == logits.shape and torch.equal(seen[0], logits)


def output_layer(module: nn.Module) -> Any:
    """Return the last layer of a language model, or what stands in its place; `None` if it has none."""
    model: Any = base_model(module)
    return model.get_output_embeddings()
