"""Ensembles: what the server makes of many opinions on one prediction."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor
from torch.nn import functional

from trillium.component import Component
from trillium.errors import UserError
from trillium.privacy.noise import LEAST as LEAST_NOISE
from trillium.privacy.noise import on_grid, released
from trillium.tasks import IGNORE
from trillium.wire.codecs.rows import LEAST

Average = Literal["probabilities", "logits"]


@dataclass(frozen=True)
class Opinions:
    """What clients say of some rows, a row being one prediction of the public set.

    Attributes:
        log_probs: normalised, of temperature 1, `(clients, rows, classes)` float64; anything where
            a client said nothing.
        present: whether a client said something, bool `(clients, rows)`.
        sizes: weight of each client in means, `(clients,)` float64.
        counts: examples of each class, `(clients, classes)` float64, if the ensemble asks for it.
        targets: label of each row, `(rows,)` int64, `IGNORE` where there is none.
        secret: gives the key of what noise there is to be.
    """

    log_probs: Tensor
    present: Tensor
    sizes: Tensor
    counts: Tensor | None
    targets: Tensor
    secret: Callable[[], bytes] = lambda: os.urandom(32)


class Ensemble(Component, kind="ensemble", package="trillium.frameworks.kd.ensembles"):
    """Weighs the clients' opinions and averages them, row by row.

    Who says nothing of a row has no part in its average: there are no zeros in his place.

    Class variables:
        needs_labels: it looks at the labels of the public set.
        needs_counts: clients tell how many examples of each class they have.
        averages: it can average probabilities or logits.
        draws: it draws noise.
        adds: all that it needs to know is what opinions add up to; see `of_row` and `settled`.
        takes_values: its weights are also those of numbers.
    """

    needs_labels: ClassVar[bool] = False
    needs_counts: ClassVar[bool] = False
    averages: ClassVar[bool] = True
    draws: ClassVar[bool] = False
    adds: ClassVar[bool] = False
    takes_values: ClassVar[bool] = False

    def weights(self, opinions: Opinions) -> Tensor:
        """Return weights that broadcast to `(clients, rows, classes)`, in any scale; here the same.

        Those of absent opinions are not looked at.
        """
        return opinions.sizes.new_ones(len(opinions.sizes), 1, 1)

    def combine(self, opinions: Opinions, temperature: float, average: Average) -> Tensor:
        """Return the teacher of each row: log-probabilities `(rows, classes)` at the temperature.

        There is at least one opinion for each row. Averaged are probabilities, or their logarithms
        and so the logits.
        """
        softened = (opinions.log_probs / temperature).log_softmax(-1)
        return average_opinions(softened, self.weights(opinions), opinions.present, average)

    def of_row(self, log_probs: Tensor, temperature: float, average: Average) -> Tensor:
        """Return what one client adds to a sum over all, of log-probabilities `(rows, classes)`."""
        raise NotImplementedError

    def reach(self, average: Average) -> float | None:
        """Return the largest absolute value of what a client adds, if there is one."""
        return None if self.averages and average == "logits" else 1.0

    def settled(self, mean: Tensor, average: Average) -> Tensor:
        """Return the teacher `(rows, classes)` that comes of the mean of all `of_row`."""
        return as_teacher(mean, average if self.averages else "probabilities")


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
    return as_teacher((shares * (known if average == "logits" else known.exp())).sum(0), average)


def as_teacher(mean: Tensor, average: Average) -> Tensor:
    """Return a mean as log-probabilities `(rows, classes)`.

    What noise has brought below zero is none; of a row in which nothing is left all classes are alike.
    """
    if average == "logits":
        return mean.log_softmax(-1)
    shares = mean.clamp(min=0)
    sums = shares.sum(-1, keepdim=True)
    return torch.where(sums > 0, shares / sums, 1 / mean.shape[-1]).log().clamp(min=LEAST)


def entropy(log_probs: Tensor) -> Tensor:
    """Return the entropy of distributions in their last dimension, in nats."""
    return -(log_probs.exp() * log_probs).sum(-1)


class ClassCounts(Ensemble, name="class_counts"):
    """The probability of each class is averaged by how many examples of it the clients have.

    Clients tell the server how many examples of each class they have, exactly. The result is
    normalised; over- and underrepresented classes are not thereby favoured.
    """

    needs_counts: ClassVar[bool] = True

    def weights(self, opinions: Opinions) -> Tensor:
        """Return the counts, by class."""
        assert opinions.counts is not None
        return opinions.counts[:, None, :]


class Confidence(Ensemble, name="confidence"):
    """Weights `exp(-entropy / scale)`: who lacks the class of a sample is mostly unsure of it.

    Attributes:
        scale: in nats; a small one gives all weight to the surest client, a large one is the mean.
    """

    scale: float = Field(0.3, gt=0)

    def weights(self, opinions: Opinions) -> Tensor:
        """Return them by client and row; the largest is 1."""
        unsure = entropy(opinions.log_probs) / self.scale
        unsure = torch.where(opinions.present, unsure, torch.inf)
        least = unsure.amin(0, keepdim=True)
        return torch.where(opinions.present, (least - unsure).exp(), 0.0)[..., None]


class LowestLoss(Ensemble, name="lowest_loss"):
    """For each prediction the client with the lowest cross-entropy on its label; equals share it.

    DualMinCE of FedMKT (Fan et al., 2024, arXiv 2406.02224). Where there is no label all count
    alike. In language modelling the choice is made token by token.
    """

    needs_labels: ClassVar[bool] = True

    def weights(self, opinions: Opinions) -> Tensor:
        """Return one for the best of each row."""
        known = opinions.targets != IGNORE
        wanted = torch.where(known, opinions.targets, 0)
        losses = torch.stack(
            [functional.nll_loss(own, wanted, reduction="none") for own in opinions.log_probs]
        )
        losses = torch.where(opinions.present & known, losses, torch.inf)
        return (losses == losses.amin(0, keepdim=True)).double()[..., None]


class Mean(Ensemble, name="mean"):
    """The plain mean over the clients that sent something.

    FedMD (Li and Wang, 2019, arXiv 1910.03581) and DS-FL (Itahara et al., 2020, arXiv 2008.06180).
    """

    adds: ClassVar[bool] = True
    takes_values: ClassVar[bool] = True

    def of_row(self, log_probs: Tensor, temperature: float, average: Average) -> Tensor:
        """Return softened probabilities, or their logarithms."""
        softened = (log_probs / temperature).log_softmax(-1)
        return softened if average == "logits" else softened.exp()


class NoisyMean(Ensemble, name="noisy_mean"):
    """The plain mean of clipped distributions, with Gaussian noise on their sum.

    It is for differential privacy of the clients towards whoever sees the teacher. One client more
    or less changes the sum of a row by at most `clip` in l2 norm: that is the sensitivity, and the
    noise has `noise * clip` as its standard deviation in every entry. It comes of a secret of the
    server's, not of the run's seed, which all clients know. Of `m` rows in all rounds together the
    sensitivity is `clip * sqrt(m)`. The server sees the opinions themselves, and how many there are is
    not hidden. No accountant is run.

    Attributes:
        clip: largest l2 norm of a client's distribution of one row; none exceeds 1.
        noise: standard deviation of the noise, in units of the sensitivity of one row.
    """

    averages: ClassVar[bool] = False
    draws: ClassVar[bool] = True

    clip: float = Field(1.0, gt=0, le=1)
    noise: float = Field(1.0, ge=0)

    @field_validator("noise")
    @classmethod
    def _is_on_a_grid(cls, value: float) -> float:
        if 0 < value < LEAST_NOISE:
            raise UserError(
                f"noise={value:g}",
                "so little hides nothing, and its grid is finer than 64 bits hold",
                f"Write 0, or {LEAST_NOISE:g} or more",
            )
        return value

    def combine(self, opinions: Opinions, temperature: float, average: Average) -> Tensor:
        """Return the noisy sum, what is negative set to zero, normalised."""
        softened = (opinions.log_probs / temperature).softmax(-1)
        here, deviation = opinions.present[..., None], self.noise * self.clip
        if deviation:
            steps = on_grid(softened, self.clip, deviation)
            total = released(steps.where(here, 0).sum(0), deviation, opinions.secret())
        else:
            norms = softened.norm(dim=-1, keepdim=True)
            total = (softened * (self.clip / norms).clamp(max=1.0)).where(here, 0.0).sum(0)
        return as_teacher(total, "probabilities")


class SizeWeighted(Ensemble, name="size_weighted"):
    """The mean weighted by the clients' examples, or supervised tokens.

    As in federated averaging (McMahan et al., 2017, arXiv 1602.05629).
    """

    takes_values: ClassVar[bool] = True

    def weights(self, opinions: Opinions) -> Tensor:
        """Return the sizes."""
        return opinions.sizes[:, None, None]


class Variance(Ensemble, name="variance"):
    """Weights by the variance of logits over classes: Fed-ET (Cho et al., 2022, arXiv 2204.12703)."""

    def weights(self, opinions: Opinions) -> Tensor:
        """Return the variances, which log-probabilities have in common with logits."""
        found = opinions.log_probs.var(-1, correction=0)
        return torch.where(opinions.present, found, 0.0)[..., None]


class Vote(Ensemble, name="vote"):
    """The share of the clients that hold a class for the most probable.

    PATE (Papernot et al., 2017, arXiv 1610.05755), without its noise.
    """

    averages: ClassVar[bool] = False
    adds: ClassVar[bool] = True

    def combine(self, opinions: Opinions, temperature: float, average: Average) -> Tensor:
        """Return the logarithms of the shares, whatever temperature and average."""
        best = opinions.log_probs.argmax(-1, keepdim=True)
        votes = torch.full_like(opinions.log_probs, LEAST).scatter(-1, best, 0.0)
        return average_opinions(votes, self.weights(opinions), opinions.present, "probabilities")

    def of_row(self, log_probs: Tensor, temperature: float, average: Average) -> Tensor:
        """Return one at the most probable class."""
        best = log_probs.argmax(-1, keepdim=True)
        return torch.zeros_like(log_probs).scatter(-1, best, 1.0)
