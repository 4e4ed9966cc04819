"""Parts of a batch on one side of the cut, one after the other.

A part whose gradient comes with a later message would have to keep all until then: it keeps its inputs
alone, and runs once more, with the same random numbers, when the gradient is there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from trillium.tasks import Task
from trillium.training.settings import Training


def in_parts(work: Callable[..., Tensor], size: int | None, *tensors: Tensor) -> Tensor:
    """Return what some work gives for the rows of tensors, at most `size` of these at once."""
    if size is None or len(tensors[0]) <= size:
        return work(*tensors)
    found = []
    for rows in places(len(tensors[0]), size):
        some = [tensor[rows] for tensor in tensors]
        if torch.is_grad_enabled():
            found.append(checkpoint(work, *some, use_reentrant=False))
        else:
            found.append(work(*some))
    return torch.cat(found)


def rows_at_once(training: Training, task: Task) -> int | None:
    """Return how many rows of a batch go together at most; texts that are compared do."""
    size = training.micro_batch_size
    return None if size is None else size * task.num_texts


def places(count: int, size: int | None) -> Iterator[slice]:
    """Yield which of so many rows go together."""
    for start in range(0, count, size or count):
        yield slice(start, start + (size or count))


def paddings(mask: Tensor, size: int | None) -> tuple[bool, ...]:
    """Return in which parts of a batch there is padding: models leave a mask away without."""
    return tuple(not bool(mask[rows].all()) for rows in places(len(mask), size))


def noting(kept: list[Tensor]) -> saved_tensors_hooks:
    """Note what autograd keeps for the backward pass."""

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    return saved_tensors_hooks(note, lambda tensor: tensor)
