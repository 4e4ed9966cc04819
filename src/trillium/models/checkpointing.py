"""Activations that are computed again on the way back, instead of being kept until then.

Training Deep Nets with Sublinear Memory Cost (Chen et al., 2016, arXiv 1604.06174), by PyTorch: a block
keeps its input alone, and runs once more, with the same random numbers, when its gradient is due.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from trillium.errors import UserError
from trillium.models.blocks import find_blocks
from trillium.models.stand_ins import StandIn


class _Again(nn.Module):
    """Stands in front of a block's own class."""

    def forward(self, *args: Any, **options: Any) -> Any:
        """Return what the block does."""
        if not (self.training and torch.is_grad_enabled()):
            return super().forward(*args, **options)
        return checkpoint(super().forward, *args, use_reentrant=False, **options)


def checkpoint_blocks(module: nn.Module) -> None:
    """Let all blocks of a model keep their inputs alone in training.

    By their class and not by a wrapper: names, hooks and copies of a block stay as they are, and a hook
    that leaves the model behind a block (`trillium.models.cut`) is not part of what runs again.

    Raises:
        UserError: it has no list of blocks.
    """
    try:
        blocks = find_blocks(module)[1]
    except UserError as error:
        raise UserError(
            f"training.gradient_checkpointing=true with {error.given}",
            error.why.replace(" to cut between", ""),
            "Leave it out, or choose a model with separate layers",
        ) from error
    for block in (block for block in blocks if not isinstance(block, StandIn)):
        kind = type(block)
        block.__class__ = type(kind.__name__, (_Again, kind), {"__module__": kind.__module__})
