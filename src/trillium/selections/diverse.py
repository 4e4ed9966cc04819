"""Spread a round over all that there is: greedy k-centre in the frozen model's features.

Gonzalez, "Clustering to minimize the maximum intercluster distance" (1985): no point is farther from
the chosen ones than twice what is possible. As a choice of what to label it is the core-set of Sener
and Savarese (2018, arXiv 1708.00489).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from trillium.errors import UserError
from trillium.frozen import frozen_features
from trillium.selections import Selection

if TYPE_CHECKING:
    from trillium.config import ExperimentConfig
    from trillium.server import Server


class Diverse(Selection, name="diverse"):
    """Order the public set once, each next example the farthest from all before it, and walk along.

    The first round gets the examples that lie farthest apart, the next ones what lies between them;
    after the last example comes the first again.
    """

    def check(self, config: ExperimentConfig) -> None:
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
