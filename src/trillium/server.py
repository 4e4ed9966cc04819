"""The coordinating side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trillium.models.folds import Fold, as_fold
from trillium.models.slots import State
from trillium.side import Side
from trillium.tasks import Example
from trillium.tiers import Tier


@dataclass(kw_only=True)
class Server(Side):
    """What asks; its half of each protocol is the `round` of a framework.

    Attributes:
        tiers: by client, what it does differently from others.
        folder: where what is too large for memory may lie until the run ends, if anywhere.
        state: the server's trainable parameters; at the end of a round those it would ship.
        public: the public set, empty where the run has none.
        pooled: the clients' data in one place, which only a simulation has; for the baseline that
            shows what moving the data would give.
    """

    name: str = "server"
    state: State
    public: list[Example]
    pooled: list[Example]
    tiers: Mapping[str, Tier]
    folder: Path | None = None

    @property
    def folds(self) -> list[Fold]:
        """What the run has added to base weights, one round after the other."""
        return [as_fold(content) for content in self.store.get("folds", [])]
