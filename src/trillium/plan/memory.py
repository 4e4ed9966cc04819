"""What the memory of a client is made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from trillium.plan.fakes import Paper
from trillium.plan.waves import Memory
from trillium.training.meters import resident_tensors
from trillium.training.optimizers import Optimizer


def divided(
    peak_bytes: int,
    weights: int,
    trained: Sequence[torch.nn.Parameter],
    optimizer: Optimizer,
    paper: Paper,
) -> Memory:
    """Divide a peak of memory into weights, gradients, optimiser state and the rest."""
    gradients = sum(parameter.nbytes for parameter in trained)
    kept = state_bytes(trained, optimizer, paper)
    left = max(peak_bytes - weights - kept, 0)
    gradients = min(gradients, left)
    kept = min(kept, max(peak_bytes - weights, 0))
    return Memory(weights, gradients, kept, left - gradients)


def state_bytes(
    parameters: Sequence[torch.nn.Parameter], optimizer: Optimizer, paper: Paper
) -> int:
    """Return what the state of an optimiser weighs after its first step."""
    if not parameters:
        return 0
    alike = Counter((tuple(parameter.shape), parameter.dtype) for parameter in parameters)
    total = 0
    with paper.running():
        for (shape, dtype), count in alike.items():
            one = torch.nn.Parameter(paper.empty(*shape, dtype=dtype))
            one.grad = torch.zeros_like(one)
            built = optimizer.build([one])
            built.step()
            kept = unique_bytes(resident_tensors(torch.nn.Module(), built))
            total += count * kept
    return total


def unique_bytes(tensors: Iterator[Tensor]) -> int:
    """Return the bytes of the storages behind some tensors, each once."""
    storages = {
        id(tensor.untyped_storage()): tensor.untyped_storage().nbytes() for tensor in tensors
    }
    return sum(storages.values())
