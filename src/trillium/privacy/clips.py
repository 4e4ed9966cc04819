"""How long what a client sends may be: fixed, or as long as a share of them is."""

from __future__ import annotations

import math
from typing import ClassVar

from pydantic import Field

from trillium.component import Component


class Clip(Component, kind="clip", package="trillium.privacy.clips"):
    """The bound of the l2 norm of all that a client adds to a sum.

    Class variables:
        learns: clients say whether they were below the bound, as one more coordinate of the sum.
    """

    learns: ClassVar[bool] = False

    @property
    def first(self) -> float:
        """The bound of the first round."""
        raise NotImplementedError

    def following(self, bound: float, below: float) -> float:
        """Return the bound of the next round, after a share of the clients, with noise, was below."""
        return bound

    def split(self, noise: float, cohort: float) -> tuple[float, float]:
        """Return the noise of the sum over its bound, and that of the coordinate, as one release.

        Args:
            noise: of both together, over the bound of both together.
            cohort: how many clients are expected.
        """
        return noise, 0.0


class Fixed(Clip, name="fixed"):
    """The same bound in all rounds.

    Attributes:
        norm: of the change of all trained values together.
    """

    norm: float = Field(default=1.0, gt=0)

    @property
    def first(self) -> float:
        """The bound."""
        return self.norm


class Adaptive(Clip, name="adaptive"):
    """A quantile of the norms, followed by noisy counts: Andrew et al. (2021, arXiv 1905.03871).

    Attributes:
        start: the bound of the first round.
        quantile: the share of the clients whose changes are to be below the bound.
        rate: how fast the bound moves: by this factor of the natural logarithm in a round, at most.
    """

    start: float = Field(default=0.1, gt=0)
    quantile: float = Field(default=0.5, gt=0, lt=1)
    rate: float = Field(default=0.2, gt=0)

    learns: ClassVar[bool] = True

    @property
    def first(self) -> float:
        """The start."""
        return self.start

    def following(self, bound: float, below: float) -> float:
        """Return the bound, larger where fewer were below than are to be."""
        return bound * math.exp(-self.rate * (min(max(below, 0.0), 1.0) - self.quantile))

    def split(self, noise: float, cohort: float) -> tuple[float, float]:
        """Return it as the paper does: a twentieth of the cohort for the coordinate, of norm 1/2.

        In a small cohort it is more, so that the sum never has more than 1.04 times the noise.
        """
        count = max(cohort / 20, 2 * noise)
        return (noise**-2 - (2 * count) ** -2) ** -0.5 if noise else 0.0, count
