"""Ask about what the server's model does not know yet: uncertainty sampling of active learning.

Lewis and Gale, "A Sequential Algorithm for Training Text Classifiers" (1994, arXiv cmp-lg/9407020);
by the entropy of predictions, as in Settles, "Active Learning Literature Survey" (2009).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from trillium.ensembles import entropy
from trillium.selections import Selection, drawn
from trillium.tasks.public import row_slices
from trillium.training.distillation import visit_predictions

if TYPE_CHECKING:
    from trillium.server import Server


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
