"""Noise that partly cancels over rounds, where everybody knows in which ones a client may be.

(Amplified) Banded Matrix Factorization (Choquette-Choo et al., 2023, arXiv 2306.08153). Of the sums
x of all rounds, Cx + z is released, z being a Gaussian of independent entries; the estimate of x is
the inverse of C times that. So errors of neighbouring rounds have other signs, and a model that
adds them up has less. C is the square root of the matrix of ones below the diagonal, cut off after
some bands: what a client adds in one round is in that many releases. As it is not asked again
before these are over, the price of each of its rounds is the norm of one column.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from torch import Tensor

from trillium.privacy.noise import GRID, noisy
from trillium.wire.kinds import has_values

WHOLE: Final = 2**8  # what stands for one among the entries of C, which are whole numbers


@dataclass(frozen=True)
class Bands:
    """The matrix C, and what is remembered of the rounds that it mixes.

    Attributes:
        count: its bands; with one of them noise is independent.
    """

    count: int

    @cached_property
    def entries(self) -> tuple[int, ...]:
        """A column from the diagonal on: coefficients of (1 - x)^(-1/2), of `WHOLE`."""
        shares = [math.comb(2 * lag, lag) / 4**lag for lag in range(self.count)]
        return tuple(round(WHOLE * share) for share in shares)

    @property
    def norm(self) -> float:
        """Of a column, in l2: by what the noise of a release is larger than if it were independent."""
        return math.hypot(*self.entries) / WHOLE

    def release(
        self, steps: Tensor, number: int, store: MutableMapping[str, Any], key: bytes
    ) -> Tensor:
        """Return the estimate of a sum, in steps of its grid, float64 `(width,)`.

        A round that was undone has left nothing in the store, but its place: lags are of rounds.

        Args:
            steps: the sum of a round, int64 `(width,)`, on the grid of `on_grid`.
            store: has `sums` and `estimates` of rounds before, by their number.
            key: a secret of this round.
        """
        if not has_values(steps):
            return steps.double()
        sums, estimates = (
            self._near(store.get(name, {}), number) for name in ("sums", "estimates")
        )
        mixed = WHOLE * steps
        for lag, before in sums.items():
            mixed = mixed + self.entries[lag] * before
        found = noisy(mixed, WHOLE * GRID, key).double()
        for lag, before in estimates.items():
            found -= self.entries[lag] * before
        found /= WHOLE
        kept = range(number - self.count + 2, number)
        for name, new in (("sums", steps), ("estimates", found)):
            old = {n: t for n, t in store.get(name, {}).items() if n in kept}
            store[name] = {**old, number: new}
        return found

    def _near(self, by_round: Mapping[int, Tensor], number: int) -> dict[int, Tensor]:
        """Return what rounds before have that are in the same bands, by how long ago they were."""
        return {number - n: t for n, t in by_round.items() if 0 < number - n < self.count}
