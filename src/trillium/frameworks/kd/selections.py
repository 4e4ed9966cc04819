"""Selections: which public examples a round is about, where it is not about all of them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from trillium.component import Component
from trillium.errors import UserError
from trillium.federation.frozen import frozen_features
from trillium.frameworks.kd.distillation import visit_predictions
from trillium.frameworks.kd.ensembles import entropy
from trillium.frameworks.kd.public import row_slices
from trillium.rng import generator

if TYPE_CHECKING:
    from trillium.federation.server import Server
    from trillium.federation.setting import Setting


class Selection(Component, kind="selection", package="trillium.frameworks.kd.selections"):
    """Chooses from the public set, at the server, at the beginning of each round.

    Class variables:
        needs_learner: it asks the server's model, which must learn for that.
    """

    needs_learner: ClassVar[bool] = False

    def check(self, config: Setting) -> None:
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


# Spread a round over all that there is: greedy k-centre in the frozen model's features.


class Diverse(Selection, name="diverse"):
    """Order the public set once, each next example the farthest from all before it, and walk along.

    The first round gets the examples that lie farthest apart, the next ones what lies between them;
    after the last example comes the first again.
    """

    def check(self, config: Setting) -> None:
        """Refuse tasks without features of a whole text."""
        if config.task.peft_task != "SEQ_CLS":
            raise UserError(
                f"framework.selection={self.name} with task={config.task.name}",
                "it compares texts by what a classifier sees of them",
                "Write framework.selection=uncertain",
            )

    def choose(self, server: Server, size: int) -> list[int]:
        """Return the next examples of the order."""
        count = len(server.public)
        if "selection" not in server.store:
            points = frozen_features(server, server.public)
            with server.meter.measure(("k_centre", points.shape, size)):
                order = farthest_first(points, min(count, size * server.num_rounds))
            server.store["selection"] = order
        order = server.store["selection"]
        start = (server.round - 1) * size
        return sorted(order[place % len(order)] for place in range(start, start + size))


def farthest_first(points: Tensor, size: int) -> list[int]:
    """Return so many points, each the farthest from all before it, beginning nearest to their mean.

    Args:
        points: `(n, width)`, at least `size` of them.
        size: how many to return; equals go by their index.
    """
    points = points.double()
    chosen = [int((points - points.mean(0)).square().sum(1).argmin())]
    nearest = (points - points[chosen[0]]).square().sum(1)
    while len(chosen) < size:
        nearest[chosen[-1]] = -1.0  # itself is no choice, even among points that are all the same
        chosen.append(int(nearest.argmax()))
        nearest = nearest.minimum((points - points[chosen[-1]]).square().sum(1))
    return chosen


# A random choice, as in DS-FL (Itahara et al., 2020, arXiv 2008.06180).


class Random(Selection, name="random"):
    """Draw anew for each round."""

    def choose(self, server: Server, size: int) -> list[int]:
        """Return a draw of this round."""
        return sorted(drawn(server, [*range(len(server.public))], size))


# Ask about what the server's model does not know yet: uncertainty sampling of active learning.


class Uncertain(Selection, name="uncertain"):
    """Choose the examples of the highest predictive entropy, and some at random.

    In language modelling the entropy of an example is the mean over its response tokens. The server
    predicts the whole public set for that in each round.

    Attributes:
        explore: share of the choice that is drawn from all other examples, rounded up; without it, what
            the model is wrongly sure of would never be asked.
    """

    explore: float = Field(default=0.25, ge=0, le=1)

    needs_learner: ClassVar[bool] = True

    def choose(self, server: Server, size: int) -> list[int]:
        """Return the most uncertain of this round, and the draw."""
        num_drawn = math.ceil(self.explore * size)
        order = predictive_entropy(server).argsort(descending=True, stable=True).tolist()
        surest = order[: size - num_drawn]
        return sorted(surest + drawn(server, sorted(order[size - num_drawn :]), num_drawn))


def predictive_entropy(server: Server) -> Tensor:
    """Return the mean entropy of the server's predictions by public example, nats, `(n,)` float64.

    Logits exist a few rows at a time.
    """
    found: list[Tensor] = []
    visit_predictions(
        server.loop("select", server.state),
        server.task,
        server.public,
        server.model.num_classes,
        lambda log_probs: found.append(entropy(log_probs.double()).cpu()),
    )
    rows = torch.cat(found)
    slices = row_slices(server.task, server.public)
    means = [rows[slices[example.index]] for example in server.public]
    return torch.stack([own.sum() / max(len(own), 1) for own in means])
