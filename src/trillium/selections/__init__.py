"""Selections: which public examples a round is about, where it is not about all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch

from trillium.component import Component
from trillium.rng import generator

if TYPE_CHECKING:
    from trillium.config import ExperimentConfig
    from trillium.server import Server


class Selection(Component, kind="selection", package="trillium.selections"):
    """Chooses from the public set, at the server, at the beginning of each round.

    Class variables:
        needs_learner: it asks the server's model, which must learn for that.
    """

    needs_learner: ClassVar[bool] = False

    def check(self, config: ExperimentConfig) -> None:
        """Refuse settings that contradict each other.

        Raises:
            UserError: says which, why, and what to write instead.
        """

    def choose(self, server: Server, size: int) -> list[int]:
        """Return which examples of `server.public` this round is about, sorted.

        Args:
            server: has the public set, the model and the round.
            size: how many to choose, fewer than there are.
        """
        raise NotImplementedError


def drawn(server: Server, candidates: list[int], size: int) -> list[int]:
    """Return a random choice for this round, as many as there are at most."""
    draw = generator(server.seed, "public", server.round)
    order = torch.randperm(len(candidates), generator=draw)[:size].tolist()
    return [candidates[place] for place in order]
