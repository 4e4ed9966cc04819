"""Defences: what a client does to activations before they leave it."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from pydantic import Field
from torch import Tensor

from trillium.component import Component
from trillium.privacy.noise import LEAST, on_grid, released

Secret = Callable[[str], bytes]
"""Gives a key for a purpose, as `Side.secret`."""


class Defence(Component, kind="defence", package="trillium.frameworks.split.defences"):
    """Makes activations tell less of the texts; what it costs in accuracy is for the run to show."""

    def apply(self, rows: Tensor, secret: Secret) -> Tensor:
        """Return what is sent in place of activations `(tokens, width)` of one message."""
        raise NotImplementedError

    def epsilon(self, num_tokens: int, num_releases: int) -> dict[str, float]:
        """Return what is guaranteed by differential privacy, if anything."""
        return {}


class Gaussian(Defence, name="gaussian"):
    """Scale activations down to a norm and add noise to every entry: local differential privacy.

    The noise is a Gaussian on a grid, of a secret of the client's, not of the run's seed, which the
    server knows. So two runs differ, but not a run from the same run resumed.

    Two guarantees are stated, both at `delta`, for who may see all that was sent: `epsilon_token` hides
    which of two activations one token had, all else being equal; `epsilon_text` hides the whole text,
    whose tokens all change, and is far larger. A word changes the activations of its neighbours, too,
    so the first is no guarantee for a word.

    Attributes:
        clip: largest l2 norm of a token's activation.
        noise: standard deviation of the noise in an entry, in units of `clip`.
        delta: delta of the guarantee.
    """

    clip: float = Field(default=10.0, gt=0)
    noise: float = Field(default=0.1, ge=LEAST)
    delta: float = Field(default=1e-5, gt=0, lt=1)

    def apply(self, rows: Tensor, secret: Secret) -> Tensor:
        """Return clipped activations with noise."""
        deviation = self.clip * self.noise
        steps = on_grid(rows, self.clip, deviation)
        return released(steps, deviation, secret("activations")).to(rows)

    def epsilon(self, num_tokens: int, num_releases: int) -> dict[str, float]:
        """Return both guarantees."""
        # Two vectors within the clip are up to twice the clip apart; releases add up in squares.
        token = 2 / self.noise * math.sqrt(num_releases)
        return {
            "epsilon_token": gaussian_epsilon(token, self.delta),
            "epsilon_text": gaussian_epsilon(token * math.sqrt(num_tokens), self.delta),
        }


def gaussian_epsilon(sensitivity: float, delta: float) -> float:
    """Return the least ε of Gaussian noise of standard deviation 1.

    Args:
        sensitivity: l2 distance of the two results that are not to be told apart.
    """
    low, high = 0.0, 1.0
    while _delta(sensitivity, high) > delta:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if _delta(sensitivity, middle) > delta else (low, middle)
    return high


def _delta(sensitivity: float, epsilon: float) -> float:
    """Return the δ of noise 1 at an ε: Φ(Δ/2 - ε/Δ) - e^ε Φ(-Δ/2 - ε/Δ)."""
    below = -sensitivity / 2 - epsilon / sensitivity
    # The product in logarithms: e^ε alone would overflow.
    log_tail = _log_normal(below)
    return _normal(sensitivity / 2 - epsilon / sensitivity) - math.exp(min(epsilon + log_tail, 0.0))


def _normal(value: float) -> float:
    return math.erfc(-value / math.sqrt(2)) / 2


def _log_normal(value: float) -> float:
    """Return the logarithm of the normal distribution function, also far below zero."""
    return float(torch.special.log_ndtr(torch.tensor(value, dtype=torch.float64)))


class NoDefence(Defence, name="none"):
    """Send activations as they are."""

    def apply(self, rows: Tensor, secret: Secret) -> Tensor:
        """Return them."""
        return rows
