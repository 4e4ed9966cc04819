"""Hidden states in KD-FedLLM: how they cross, and what the server makes of many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from trillium.frameworks.kd.hiddens.probe import Probe
from trillium.frameworks.kd.opinion import Opinion
from trillium.frameworks.kd.public import rows_of
from trillium.wire.kinds import MessageError
from trillium.wire.message import Message

PUBLIC: Final = "activations/hidden"
TEACHER: Final = "activations/teacher"


def read_hidden(message: Message, name: str, num_rows: int, probe: Probe | None) -> Tensor | None:
    """Return hidden states `(rows, size)` float32 of a message; `None` without a probe.

    Raises:
        MessageError: they are missing, of another shape or not finite, or there should be none.
    """
    if probe is None:
        if name in message.tensors:
            raise MessageError(f"{message.verb}: {name} was not asked for")
        return None
    return message.floats(name, (num_rows, probe.size)).float()


def write_hidden(name: str, hidden: Tensor | None) -> dict[str, Tensor]:
    """Return what `read_hidden` reads."""
    return {} if hidden is None else {name: hidden}


def mean_hidden(
    opinions: Sequence[Opinion], slices: Mapping[int, slice], indices: Sequence[int]
) -> Tensor | None:
    """Return the mean hidden states of some examples, `(rows, size)` float32; `None` if there are none.

    Of each row, over those clients alone who speak of its example, weighted like their opinions by
    size.

    Args:
        opinions: of the clients that answered.
        slices: the rows of all examples that they were asked about.
        indices: of which examples the mean is wanted; somebody speaks of each.
    """
    num_rows = max((rows.stop for rows in slices.values()), default=0)
    masses = torch.zeros(num_rows, 1, dtype=torch.float64)
    total: Tensor | None = None
    for opinion in opinions:
        if opinion.hidden is None:
            return None
        rows = rows_of(dict(slices), opinion.indices)
        if total is None:
            total = torch.zeros(num_rows, opinion.hidden.shape[1], dtype=torch.float64)
        total[rows] += opinion.weight * opinion.hidden.double()
        masses[rows] += opinion.weight
    if total is None:
        return None
    wanted = rows_of(dict(slices), indices)
    return (total[wanted] / masses[wanted]).float()
