"""Ensembles: what the server makes of many opinions on one prediction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from trillium.codecs.rows import LEAST
from trillium.component import Component

Average = Literal["probabilities", "logits"]


@dataclass(frozen=True)
class Opinions:
    """What clients say of some rows, a row being one prediction of the public set.

    Attributes:
        log_probs: normalised, of temperature 1, `(clients, rows, classes)` float64; anything where
            a client said nothing.
        present: whether a client said something, bool `(clients, rows)`.
        sizes: weight of each client in means, `(clients,)` float64.
        counts: how many examples of each class a client has, `(clients, classes)` float64; `None`
            unless the ensemble asks for it.
        targets: label of each row, `(rows,)` int64, `IGNORE` where there is none.
        key: seeds what is drawn at random.
    """

    log_probs: Tensor
    present: Tensor
    sizes: Tensor
    counts: Tensor | None
    targets: Tensor
    key: int = 0


class Ensemble(Component, kind="ensemble", package="trillium.ensembles"):
    """Weighs the clients' opinions and averages them, row by row.

    Who says nothing of a row has no part in its average: there are no zeros in his place.

    Class variables:
        needs_labels: it looks at the labels of the public set.
        needs_counts: clients tell how many examples of each class they have.
    """

    needs_labels: ClassVar[bool] = False
    needs_counts: ClassVar[bool] = False

    def weights(self, opinions: Opinions) -> Tensor:
        """Return weights that broadcast to `(clients, rows, classes)`, in any scale.

        Those of absent opinions are not looked at.
        """
        raise NotImplementedError

    def combine(self, opinions: Opinions, temperature: float, average: Average) -> Tensor:
        """Return the teacher of each row: log-probabilities `(rows, classes)` at the temperature.

        Args:
            opinions: at least one for each row.
            temperature: divides the logarithms before they are averaged.
            average: whether probabilities are averaged, or their logarithms and so the logits.
        """
        softened = (opinions.log_probs / temperature).log_softmax(-1)
        return average_opinions(softened, self.weights(opinions), opinions.present, average)


def average_opinions(
    log_probs: Tensor, weights: Tensor, present: Tensor, average: Average
) -> Tensor:
    """Return the weighted mean of log-probabilities, normalised, `(rows, classes)`.

    Where all weights of an entry are zero, as of a class that nobody has, opinions count alike.
    """
    here = present[..., None].double()
    shares = here * weights
    shares = torch.where(shares.sum(0, keepdim=True) > 0, shares, here)
    shares = shares / shares.sum(0, keepdim=True)
    known = torch.where(present[..., None], log_probs, 0.0)
    if average == "logits":
        return (shares * known).sum(0).log_softmax(-1)
    mean = (shares * known.exp()).sum(0)
    return (mean / mean.sum(-1, keepdim=True)).log().clamp(min=LEAST)


def entropy(log_probs: Tensor) -> Tensor:
    """Return the entropy of distributions in their last dimension, in nats."""
    return -(log_probs.exp() * log_probs).sum(-1)
