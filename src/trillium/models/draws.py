"""Start values that follow from the seed and the name of what is drawn, not from what else is.

So a part of a model draws what the whole would.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trillium.rng import scoped_rng

Draws = Mapping[str, Callable[[Tensor], object]]
"""By the name of a parameter: what draws its values in place."""


@torch.no_grad()
def draw(module: nn.Module, draws: Draws, seed: int) -> None:
    """Draw the named parameters of a module anew, on the CPU, so that devices agree."""
    for name, fill in draws.items():
        parameter = module.get_parameter(name)
        drawn = torch.empty(parameter.shape, dtype=parameter.dtype)
        with scoped_rng(seed, "model", name):
            fill(drawn)
        parameter.copy_(drawn)


def draw_missing(model: Any, found: Mapping[str, Any], seed: int) -> set[str]:
    """Draw anew what a Hugging Face model did not find in its checkpoint, and return the names.

    Whole modules are drawn at once, for only their architecture knows how; what they did find stays.

    Args:
        found: what `from_pretrained` says of the loading.
    """
    names = {*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])}
    for owner in sorted({name.rpartition(".")[0] for name in names}):
        with scoped_rng(seed, "model", owner):
            model._init_weights(model.get_submodule(owner))
    return names
