"""Noise that hides something: its distribution, its grid, and that nobody can draw it again."""

from __future__ import annotations

import math
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resumed import killed_in, trained
from tiny import experiment_config, federation
from trillium.errors import UserError
from trillium.experiment import run
from trillium.experiment.folder import RunFolder
from trillium.experiment.run import build
from trillium.privacy.noise import GRID, on_grid, released


def test_it_is_a_gaussian_on_a_grid() -> None:
    """By its moments and all its quantiles; its values lie on the grid."""
    drawn = released(torch.zeros(200_000, dtype=torch.int64), 3.0, b"k" * 32)
    steps = drawn / (3.0 / GRID)
    assert torch.equal(steps, steps.round())
    shares = (torch.arange(len(drawn)) + 0.5) / len(drawn)
    distance = (torch.special.ndtr(drawn.sort().values / 3.0) - shares).abs().max()
    assert float(distance) < 1.95 / math.sqrt(len(drawn))  # Kolmogorov's, of one in a thousand
    lags = np.corrcoef(drawn[:-1].numpy(), drawn[1:].numpy())[0, 1]
    assert abs(lags) < 0.01


@settings(deadline=None, max_examples=50)
@given(
    st.integers(1, 300), st.floats(0.1, 10), st.floats(1e-3, 5), st.sampled_from([1e-6, 1.0, 1e9])
)
def test_rounded_rows_are_no_longer_than_they_may_be(
    width: int, norm: float, noise: float, scale: float
) -> None:
    """Else the rounding would add to what one client changes. Short rows stay as they are."""
    rows = scale * torch.randn(5, width, generator=torch.Generator().manual_seed(width))
    steps = on_grid(rows, norm, noise * norm)
    found = steps.double() * (noise * norm / GRID)
    assert float(found.norm(dim=-1).max()) <= norm * (1 + 1e-12)
    room = norm - noise * norm / GRID * math.sqrt(width) / 2
    short = rows.double().norm(dim=-1) <= room
    assert torch.allclose(found[short], rows.double()[short], atol=noise * norm / GRID / 1.9)


def test_noise_follows_from_the_secret_and_from_what_is_hidden() -> None:
    zeros, ones = torch.zeros(50, dtype=torch.int64), torch.ones(50, dtype=torch.int64)
    first = released(zeros, 1.0, b"a" * 32)
    assert torch.equal(first, released(zeros, 1.0, b"a" * 32))
    for other in (released(zeros, 1.0, b"b" * 32), released(ones, 1.0, b"a" * 32) - 1 / GRID):
        assert abs(np.corrcoef(first.numpy(), other.numpy())[0, 1]) < 0.5


@pytest.mark.parametrize("place", [0, 3, 4, 7, 8, 31])
def test_every_byte_of_the_secret_counts(hub: Path, place: int) -> None:
    """A generator of PyTorch's has 32 bits of its seed, which a server can try one by one."""
    side, draws = federation(hub, "framework=zero_shot").server, []
    for value in (0, 1):
        secret = bytearray(32)
        secret[place] = value
        side.store["secret"] = secret.hex()
        draws.append(released(torch.zeros(200, dtype=torch.int64), 1.0, side.secret("noise")))
    assert abs(np.corrcoef(draws[0].numpy(), draws[1].numpy())[0, 1]) < 0.3


@pytest.mark.parametrize(
    "words",
    [
        "framework={name: kd, ensemble: {name: noisy_mean, noise: 1e-17}}",
        "framework={name: split, defence: {name: gaussian, noise: 1e-17}}",
    ],
)
def test_a_grid_that_no_number_holds_is_refused(hub: Path, words: str) -> None:
    with pytest.raises(UserError, match="noise"):
        experiment_config(hub, words)


NOISY = {
    "teacher": ("framework={name: kd, ensemble: {name: noisy_mean, noise: 0.5}}", "classification"),
    "activations": ("framework={name: split, defence: {name: gaussian, noise: 0.5}}", "causal_lm"),
}


@pytest.mark.parametrize("what", NOISY)
def test_two_runs_of_a_seed_differ_and_a_resumed_one_does_not(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Who knows the seed cannot take the noise off; a round that runs again releases nothing new."""
    words, task = NOISY[what]
    model = "bert" if task == "classification" else "llama"
    config = experiment_config(hub, words, "rounds=2", model=model, task=task)
    first = build(config)
    first.run()
    other = build(config)
    other.run()
    assert not all(torch.equal(t, trained(other)[n]) for n, t in trained(first).items())

    numbers = count()
    monkeypatch.setattr(run, "new_secret", lambda: next(numbers).to_bytes(32, "big").hex())
    whole = build(config)
    whole.run()
    numbers = count()  # the same secrets again, and others where a run is resumed
    killed_in(build(config, RunFolder(tmp_path / "cut", "cut")), 1)
    again = build(config, RunFolder.reopen(tmp_path / "cut"))
    again.run()
    assert all(torch.equal(t, trained(again)[n]) for n, t in trained(whole).items())
