"""Batches of a client that are on their way through the server."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from torch import Tensor

from trillium.federation.client import Client
from trillium.models.slots import State
from trillium.tasks import Batch
from trillium.wire.kinds import MessageError
from trillium.wire.message import Message


@dataclass(frozen=True)
class Pending:
    """A batch that is on its way through the server.

    Attributes:
        hidden: what came out; `None` where the server has it since an earlier round.
        weights: with which; with staleness they are copies, because a step is taken before its backward
            pass (as PipeDream stashes weights, Harlap et al., 2018, arXiv 1806.03377).
        kept: what its backward pass will need, where another batch may come before that.
    """

    batch: Batch
    hidden: Tensor | None
    weights: State
    kept: list[Tensor]


def pending_of(client: Client, message: Message) -> deque[Pending]:
    """Return the batches under way, the oldest first."""
    pending: deque[Pending] = client.scratch.get("pending", deque())
    if not pending:
        raise MessageError(f"{message.verb}: there is no batch under way")
    return pending
