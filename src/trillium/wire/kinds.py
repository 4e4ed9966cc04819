"""What the tensors of a message are for, of which types they may be, and the error of a peer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from trillium.errors import PeerError

Tensors = dict[str, Tensor]
"""Tensors by name."""

Kind = Literal[
    "parameters",
    "gradients",
    "logits",
    "activations",
    "labels",
    "public",
    "statistics",  # summed statistics of features
    "snapshot",  # a full state, for a client that is out of step
    "sums",  # whole numbers that are masked
    "measures",  # counts and sums of how good a model is
    "control",
]
KINDS: Final = get_args(Kind)

Nature = Literal[
    "values",  # what the receiver goes on with: nothing makes up for what is lost
    "changes",  # what is added to values that both sides hold
    "gradients",
    "activations",
    "log_probabilities",
]
NATURES: Final[frozenset[Nature]] = frozenset(get_args(Nature))
FLAT_KINDS: Final[tuple[Kind, ...]] = ("parameters", "gradients", "statistics", "snapshot")
FLAT: Final = "flat"  # name of the one vector that the tensors of a kind may cross as
DTYPES: Final = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def has_values(tensor: Tensor) -> bool:
    """Whether a tensor has values; one without has a form alone, and takes no memory."""
    return not isinstance(tensor, FakeTensor)


class MessageError(PeerError):
    """Bytes or a message from the other side that are not what was agreed."""


@dataclass(frozen=True)
class Limits:
    """What a receiver accepts of a message and its header, before it looks at the content."""

    max_bytes: int = 4 * 1024**3
    max_header_bytes: int = 16 * 1024**2
    max_tensors: int = 100_000
    max_dims: int = 8
