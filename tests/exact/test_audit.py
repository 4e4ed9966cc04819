"""Attacks with power on what is released: the sum keeps its claim, and known mistakes of others do not.

Canaries are clients that ask for ten times the bound, each along a coordinate of its own. How far the
coordinates of those that took part lie above the others is what a guarantee bounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from trillium.privacy.account import Release, epsilon
from trillium.privacy.client import BoundedSum
from trillium.privacy.noise import GRID
from trillium.rng import generator
from trillium.wire.kinds import Tensors

pytest.importorskip("dp_accounting")

CANARIES, RUNS, GROUPS = 1000, 5, 4
NOISE, CLAIM, DELTA = 3.73, 1.0, 1e-5
Add = Callable[[BoundedSum, Tensors], None]


def plain(total: BoundedSum, canary: Tensors) -> None:
    total.add(canary)


def three_times(total: BoundedSum, canary: Tensors) -> None:
    """Weighted by its examples, of which it has three times as many as others."""
    for _ in range(3):
        total.add(canary)


def head_apart(total: BoundedSum, canary: Tensors) -> None:
    """The head is left out of the norm, and is as long as it likes."""
    total.add({**canary, "parameters/head": torch.zeros(CANARIES)})
    steps = canary["parameters/head"].double() / (total.deviation / GRID)
    total._total[CANARIES:] += steps.round().long()


def released(noise: float, add: Add, key: bytes, inside: Tensor) -> Tensor:
    """Return what a release says of each canary.

    Args:
        inside: which of them took part.
    """
    like = {"parameters/a": torch.zeros(CANARIES), "parameters/head": torch.zeros(CANARIES)}
    total = BoundedSum(like, 1.0, noise)
    canary = {name: torch.zeros(CANARIES) for name in like}
    for place in inside.nonzero()[:, 0].tolist():
        for tensor in canary.values():
            tensor.zero_()[place] = 10.0
        add(total, canary)
    found, _ = total.release(key)
    return (found["parameters/a"] + found["parameters/head"]) / math.sqrt(2)


def spent(noise: float, add: Add, group: int, *, is_public: bool = False) -> float:
    """Return what is spent at least, at the 99.9 % end: Andrew et al. (2024, arXiv 2302.03098).

    Args:
        is_public: whether the noise is of a seed that the attacker has, who takes it off again.
    """
    found, inside = list[Tensor](), list[Tensor]()
    for run in range(RUNS):
        draw = generator(group, "canaries", run)
        inside.append(torch.rand(CANARIES, generator=draw) < 0.5)
        key = bytes([group, run]) * 16
        if is_public:
            hidden = noise * torch.randn(CANARIES, generator=generator(group, "noise", run))
            own = released(1e-5, add, key, inside[-1]) + hidden
            known = noise * torch.randn(CANARIES, generator=generator(group, "noise", run))
            found.append(own - known)
        else:
            found.append(released(noise, add, key, inside[-1]))
    scores, took_part = torch.cat(found), torch.cat(inside)
    own, other = scores[took_part], scores[~took_part]
    spread = max(float(torch.cat([own - own.mean(), other - other.mean()]).std()), 0.05)
    error = spread * math.sqrt(1 / len(own) + 1 / len(other))
    apart = (float(own.mean() - other.mean()) - 3.09 * error) / spread
    return epsilon([Release(1 / apart)], DELTA) if apart > 0.02 else 0.0


def test_the_claim_is_that_of_the_noise() -> None:
    assert epsilon([Release(NOISE)], DELTA) == pytest.approx(CLAIM, abs=0.01)


@pytest.mark.parametrize("group", range(GROUPS))
def test_the_sum_keeps_its_claim_and_the_attack_has_power(group: int) -> None:
    assert 0.4 < spent(NOISE, plain, group) <= CLAIM


@pytest.mark.parametrize(
    ("noise", "add", "is_public"),
    [
        pytest.param(0.61 * NOISE, plain, False, id="noise by the next bound"),
        pytest.param(NOISE, three_times, False, id="weights by examples"),
        pytest.param(NOISE, head_apart, False, id="head left out of the norm"),
        pytest.param(NOISE / 10, plain, False, id="noise of the mean divided twice"),
        pytest.param(NOISE, plain, True, id="noise from the public seed"),
    ],
)
def test_mistakes_of_others_are_found(noise: float, add: Add, is_public: bool) -> None:
    assert spent(noise, add, 0, is_public=is_public) > CLAIM
