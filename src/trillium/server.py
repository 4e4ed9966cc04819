"""The coordinating side."""

from __future__ import annotations

from dataclasses import dataclass

from trillium.models.slots import State
from trillium.side import Side
from trillium.tasks import Example


@dataclass(kw_only=True)
class Server(Side):
    """What asks; its half of each protocol is the `round` of a framework.

    Attributes:
        state: the server's trainable parameters; at the end of a round those it would ship.
        public: the public set, empty where the run has none.
        pooled: the clients' data in one place, which only a simulation has; for the baseline that
            shows what moving the data would give.
    """

    name: str = "server"
    state: State
    public: list[Example]
    pooled: list[Example]
