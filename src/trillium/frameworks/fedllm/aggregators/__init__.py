"""Aggregators: what the server makes of the tensors that the clients of a round sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol

from trillium.component import Component
from trillium.federation.means import Contribution
from trillium.models.factors import Factors, LowRank
from trillium.wire.kinds import Tensors


@dataclass(frozen=True)
class Aggregate:
    """What the contributions of a round became, in shapes and dtypes of what the server holds.

    `folds` are by layer what base weights `(out, in)` change by, LoRA's scale included. Names that
    nobody sent, and factors of LoRA that are folded, are not among the tensors.
    """

    tensors: Tensors
    folds: Mapping[str, LowRank] = field(default_factory=dict)


class Reduction(Protocol):
    """The aggregation of one round, under way."""

    def add(self, contribution: Contribution) -> None:
        """Take what one client sent, in whatever order they answer; `ValueError` if it does not fit."""

    def result(self) -> Aggregate:
        """Return the aggregate of all that was added, which is at least one contribution."""


class Aggregator(Component, kind="aggregator", package="trillium.frameworks.fedllm.aggregators"):
    """Reduces the contributions of a round to one set of tensors.

    A new one implements `aggregate`. One that need not hold all contributions at once implements
    `begin` as well.
    """

    reads: ClassVar[Literal["change", "state"]] = "change"
    """What a contribution holds: new minus received, or the new values. The result is of that kind."""
    mixes_ranks: ClassVar[bool] = False
    """Whether clients may have different ranks of LoRA."""
    takes_parts: ClassVar[bool] = True
    """Whether a client may lack tensors that another one sends."""
    restarts: ClassVar[bool] = False
    """Whether adapters start anew after the round, with `B = 0`."""

    @property
    def folds(self) -> bool:
        """Whether base weights change, which a quantised base cannot."""
        return False

    @property
    def min_clients(self) -> int:
        """How many contributions a round needs."""
        return 1

    def begin(self, like: Tensors, factors: Sequence[Factors]) -> Reduction:
        """Start the aggregation of a round.

        `like` is what the server holds of what clients may send. Tensors that are no factors are
        averaged by themselves.
        """
        return _Collected(self, like, factors)

    def aggregate(
        self, contributions: Sequence[Contribution], like: Tensors, factors: Sequence[Factors]
    ) -> Aggregate:
        """Return what the contributions of a round become, computed in float64.

        There is at least one, sorted by client so that the result does not depend on who answered
        first; none of their tensors may be written to. `like` and `factors` are as for `begin`;
        contributions that together are not what this aggregator accepts are a `ValueError`.
        """
        raise NotImplementedError


class _Collected:
    def __init__(self, aggregator: Aggregator, like: Tensors, factors: Sequence[Factors]) -> None:
        self._aggregator, self._like, self._factors = aggregator, like, factors
        self._contributions: list[Contribution] = []

    def add(self, contribution: Contribution) -> None:
        check(contribution, self._like, self._factors if self._aggregator.mixes_ranks else ())
        self._contributions.append(contribution)

    def result(self) -> Aggregate:
        assert self._contributions, "nobody answered"
        ordered = sorted(self._contributions, key=lambda contribution: contribution.client)
        return self._aggregator.aggregate(ordered, self._like, self._factors)


def check(contribution: Contribution, like: Tensors, factors: Sequence[Factors] = ()) -> None:
    """Check names and shapes of a contribution; `ValueError` if one is not as in `like`.

    In layers of `factors` a lower rank will do, if both factors that were sent have it.
    """
    sent = contribution.tensors
    shapes = {name: tuple(tensor.shape) for name, tensor in like.items()}
    for layer in factors:
        ranks = [sent[n].shape[d] for n, d in ((layer.a, 0), (layer.b, -1)) if n in sent]
        if ranks and 0 < ranks[0] <= shapes[layer.a][0]:
            shapes[layer.a] = (ranks[0], *shapes[layer.a][1:])
            shapes[layer.b] = (*shapes[layer.b][:-1], ranks[0])
    for name, tensor in sent.items():
        if name not in shapes:
            raise ValueError(f"{contribution.client} sent {name}, which the server does not hold")
        if tuple(tensor.shape) != shapes[name]:
            raise ValueError(
                f"{contribution.client} sent {name} as {tuple(tensor.shape)}, not {shapes[name]}"
            )
