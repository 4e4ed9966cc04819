"""The coordinating side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trillium.federation.side import Side
from trillium.federation.tiers import Tier
from trillium.models.folds import Fold, as_fold
from trillium.models.slots import State
from trillium.tasks import Example

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(kw_only=True)
class Server(Side):
    """What asks; its half of each protocol is the `round` of a framework.

    Attributes:
        tiers: by client, what it does differently from others.
        groups: the clients by model; those of the server's own come first, and may be none.
        dialects: by client, what it speaks instead of what the server does.
        folder: where what is too large for memory may lie until the run ends, if anywhere.
        state: the server's trainable parameters; at the end of a round those it would ship.
        public: the public set, empty where the run has none.
        pooled: the clients' data by client, which only a simulation has; for the baseline that shows
            what moving the data would give.
    """

    name: str = "server"
    state: State
    public: list[Example]
    public_rows: Dataset
    pooled: Mapping[str, Sequence[Example]]
    tiers: Mapping[str, Tier]
    groups: Sequence[Sequence[str]]
    dialects: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None

    @property
    def folds(self) -> Sequence[Fold]:
        """What the run has added to base weights, one round after the other, or all in one."""
        if self.store.get("dropped_folds"):
            return super().folds
        return [as_fold(content) for content in self.store.get("folds", [])]
