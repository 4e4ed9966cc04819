"""Write an aggregator of your own, in your own file, and hold it against the plain mean.

    python examples/custom_aggregator.py [KEY=VALUE ...]

One of four clients has a learning rate a hundred times too high, so what it sends is far from what
the others send. The mean follows it; the geometric median stays with the majority.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
import transformers
from pydantic import Field

from trillium.aggregators import Aggregator, Contribution
from trillium.config import experiment, merge, parse_overrides
from trillium.experiment import build
from trillium.models.slots import Tensors


class GeometricMedian(Aggregator, name="geometric_median"):
    """The point with the least weighted sum of distances to what the clients sent.

    Robust Aggregation for Federated Learning (Pillutla et al., 2019, arXiv 1912.13445): the smoothed
    Weiszfeld algorithm. Clients with less than half of the weight cannot drag it away.

    Attributes:
        num_iterations: steps of the algorithm.
        smoothing: distances below this are taken for this, so that no weight is infinite.
    """

    num_iterations: int = Field(default=50, ge=1)
    smoothing: float = Field(default=1e-6, gt=0)

    def aggregate(self, contributions: Sequence[Contribution]) -> Tensors:
        """Return one tensor per name."""
        first = contributions[0].tensors
        points = torch.stack(
            [
                torch.cat([c.tensors[name].double().flatten() for name in first])
                for c in contributions
            ]
        )
        weights = torch.tensor([c.weight for c in contributions], dtype=torch.float64)
        centre = (weights / weights.sum()) @ points
        for _ in range(self.num_iterations):
            distances = (points - centre).norm(dim=1).clamp_min(self.smoothing)
            pull = weights / distances
            centre = (pull / pull.sum()) @ points
        pieces = torch.split_with_sizes(centre, [tensor.numel() for tensor in first.values()])
        return {
            name: piece.view(tensor.shape).to(tensor.dtype)
            for (name, tensor), piece in zip(first.items(), pieces, strict=True)
        }


SETTINGS = {
    "rounds": 2,
    "data": {
        "source": {"name": "builtin", "num_train": 200, "num_test": 60},
        "num_clients": 4,
        "public_size": 0,
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
    for aggregator in ("mean", "geometric_median"):
        print(f"{aggregator:18} held-out loss {loss_of(aggregator, words):.3f}")


if __name__ == "__main__":
    main(sys.argv[1:])
