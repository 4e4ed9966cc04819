"""Which cut suits a client: from its memory, speed and link, before anything runs.

Estimates, not measurements: a forward pass takes two FLOPs a parameter and token, a backward pass twice
that, as in Kaplan et al. (2020, arXiv 2001.08361); attention over long texts comes on top. Deeper is
better for privacy and takes work off the server; where the client's blocks are frozen, it costs
accuracy, for which `deepest` is the bound.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Final

from torch import Tensor

from trillium.models.blocks import base_model, find_blocks
from trillium.models.load import LanguageModel
from trillium.tiers import Link

FORWARD: Final = 2  # FLOPs for a parameter and a token
BACKWARD: Final = 4
# Tensors of the hidden states' size that a block keeps for its backward pass: norms, projections, the
# wide layer of the MLP (four times the width, twice), residuals.
KEPT: Final = 18
WORKING: Final = 10  # that are alive at once in a forward pass alone


@dataclass(frozen=True)
class ModelSize:
    """What of a model a choice of the cut depends on.

    Attributes:
        num_blocks: transformer blocks.
        embedding_bytes: of what stands in front of the blocks.
        block_bytes: of the largest block.
        block_parameters: of the largest block.
        width: of the hidden states.
        itemsize: bytes of one of their entries.
    """

    num_blocks: int
    embedding_bytes: int
    block_bytes: int
    block_parameters: int
    width: int
    itemsize: int


@dataclass(frozen=True)
class Device:
    """What a client has.

    Attributes:
        memory_bytes: free for the model's part and its work.
        flops_per_second: that it sustains.
        link: to the server; a direction that is left out is taken for free.
    """

    memory_bytes: float
    flops_per_second: float
    link: Link = field(default_factory=Link)


@dataclass(frozen=True)
class Work:
    """What a client is to do.

    Attributes:
        num_tokens: of its data, without padding.
        batch_tokens: of the largest batch, padding included.
        num_epochs: passes over the data in the whole run.
        trains: whether its blocks train; frozen ones pass over the data once, whatever the epochs.
        bits_up: of an entry of the activations as it crosses, scales included.
        bits_down: of an entry of their gradients.
    """

    num_tokens: int
    batch_tokens: int
    num_epochs: int = 1
    trains: bool = False
    bits_up: float = 4.25
    bits_down: float = 32.0


@dataclass(frozen=True)
class Proposal:
    """A cut, and what it would take.

    Attributes:
        cut: blocks of the client; `None` where not even one is within its means.
        memory_bytes: for the client.
        seconds: of computing and sending, one after the other.
        bytes_up, bytes_down: of activations and gradients.
        limit: what stands against one block more: `model`, `deepest`, `memory` or `seconds`.
    """

    cut: int | None
    memory_bytes: float
    seconds: float
    bytes_up: float
    bytes_down: float
    limit: str


def size_of(model: LanguageModel) -> ModelSize:
    """Return the size of a loaded model."""
    _, blocks = find_blocks(model.module)
    largest = max(blocks, key=lambda block: _nbytes(block.parameters()))
    inputs = base_model(model.module).get_input_embeddings()  # type: ignore[operator]
    return ModelSize(
        num_blocks=len(blocks),
        embedding_bytes=_nbytes(inputs.parameters()),
        block_bytes=_nbytes(largest.parameters()),
        block_parameters=sum(parameter.numel() for parameter in largest.parameters()),
        width=int(inputs.weight.shape[1]),
        itemsize=model.dtype.itemsize,
    )


def propose_cut(
    size: ModelSize, device: Device, work: Work, seconds: float, deepest: int | None = None
) -> Proposal:
    """Return the deepest cut that a client can bear.

    Args:
        size: of the model.
        device: what the client has.
        work: what it is to do.
        seconds: that it may take in the whole run.
        deepest: most blocks that a client may hold; a quarter of the model (rounded up) without it, and
            in any case one less than there are.
    """
    bound = min(size.num_blocks - 1, deepest or math.ceil(size.num_blocks / 4))
    found = estimate(size, device, work, 1)
    limit = _over(found, device, seconds)
    if limit is not None:
        return replace(found, cut=None, limit=limit)
    for cut in range(2, bound + 1):
        following = estimate(size, device, work, cut)
        limit = _over(following, device, seconds)
        if limit is not None:
            return replace(found, limit=limit)
        found = following
    return replace(found, limit="model" if bound == size.num_blocks - 1 else "deepest")


def estimate(size: ModelSize, device: Device, work: Work, cut: int) -> Proposal:
    """Return what a cut would take, whether or not the client can bear it."""
    passes = work.num_epochs if work.trains else 1
    per_token = FORWARD + (BACKWARD if work.trains else 0)
    flops = passes * work.num_tokens * per_token * cut * size.block_parameters
    entries = passes * work.num_tokens * size.width
    up = entries * work.bits_up / 8
    down = entries * work.bits_down / 8 if work.trains else 0.0
    kept = KEPT * cut if work.trains else WORKING
    memory = size.embedding_bytes + cut * size.block_bytes
    memory += kept * work.batch_tokens * size.width * size.itemsize
    taken = flops / device.flops_per_second
    for nbytes, speed in ((up, device.link.up), (down, device.link.down)):
        taken += 0.0 if speed is None else 8 * nbytes / speed
    return Proposal(cut, float(memory), taken, up, down, "")


def _over(found: Proposal, device: Device, seconds: float) -> str | None:
    """Return which of the client's means a cut exceeds, if any."""
    if found.memory_bytes > device.memory_bytes:
        return "memory"
    return "seconds" if found.seconds > seconds else None


def _nbytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
