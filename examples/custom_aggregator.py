"""Write an aggregator of your own, in your own file, and hold it against the plain mean.

    python examples/custom_aggregator.py [KEY=VALUE ...]

One of four clients has a learning rate a hundred times too high, so what it sends is far from what
the others send. The mean follows it; centred clipping stays with the majority.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import ClassVar

import torch
import transformers
from pydantic import Field

from trillium.config.experiment import experiment, merge, parse_overrides
from trillium.experiment.run import build
from trillium.federation.means import Contribution
from trillium.frameworks.fedllm.aggregators import Aggregate, Aggregator
from trillium.frameworks.fedllm.aggregators.robust import common_names
from trillium.models.factors import Factors
from trillium.wire.kinds import Tensors


class CentredClipping(Aggregator, name="centred_clipping"):
    """A centre from which each client pulls no harder than one at the median distance does.

    Learning from History for Byzantine Robust Optimization (Karimireddy et al., 2020, arXiv
    2012.10333), here with a radius that is found anew in each iteration, and without their momentum.
    Clients that are fewer than half, by number and by weight, cannot drag it far.

    Attributes:
        num_iterations: from the mean on.
        radius: how far a client pulls at most, as a multiple of the median distance.
    """

    takes_parts: ClassVar[bool] = False

    num_iterations: int = Field(default=100, ge=1)
    radius: float = Field(default=1.0, gt=0)

    def aggregate(
        self, contributions: Sequence[Contribution], like: Tensors, factors: Sequence[Factors]
    ) -> Aggregate:
        """Return one tensor for each name that was sent."""
        names = common_names(contributions)
        points = torch.stack(
            [torch.cat([c.tensors[n].double().flatten() for n in names]) for c in contributions]
        )
        weights = torch.tensor([c.weight for c in contributions], dtype=torch.float64)
        shares = weights / weights.sum()
        centre = shares @ points
        for _ in range(self.num_iterations):
            away = points - centre
            distances = away.norm(dim=1)
            reach = self.radius * distances.median()
            pull = (reach / distances.clamp_min(1e-300)).clamp_max(1.0)
            centre = centre + (shares * pull) @ away
        pieces = torch.split_with_sizes(centre, [like[name].numel() for name in names])
        return Aggregate(
            {
                name: piece.view(like[name].shape).to(like[name].dtype)
                for name, piece in zip(names, pieces, strict=True)
            }
        )


SETTINGS = {
    "rounds": 2,
    "data": {
        "source": {"name": "builtin", "num_train": 200, "num_test": 60},
        "num_clients": 4,
    },
    "training": {
        "batch_size": 8,
        "local_steps": 3,
        "max_length": 32,
        "optimizer": {"name": "adamw", "lr": 3e-3},
    },
}


def loss_of(aggregator: str, words: Sequence[str] = ()) -> float:
    """Return the held-out loss after training with one client that went wrong."""
    tree = merge(SETTINGS, {"framework": {"name": "fedllm", "aggregator": aggregator}})
    federation = build(experiment(merge(tree, parse_overrides(words))))
    wrong = federation.clients[-1]
    optimizer = wrong.training.optimizer
    too_fast = optimizer.model_copy(update={"lr": 100 * optimizer.lr})
    wrong.training = wrong.training.model_copy(update={"optimizer": too_fast})
    return float(federation.run()[-1]["loss"])


def main(words: Sequence[str] = ()) -> None:
    """Print the loss with either aggregator."""
    transformers.utils.logging.set_verbosity_error()
    for aggregator in ("mean", "centred_clipping"):
        print(f"{aggregator:18} held-out loss {loss_of(aggregator, words):.3f}")


if __name__ == "__main__":
    main(sys.argv[1:])
