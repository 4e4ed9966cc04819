"""Banded noise: the matrix mechanism, what a client can move, what it costs, turns, and resuming."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resumed import assert_resumes, trained
from tiny import experiment_config, federation
from trillium.errors import UserError
from trillium.experiment.folder import RunFolder
from trillium.experiment.run import build
from trillium.federation.cohort import Turns
from trillium.privacy import bands as room
from trillium.privacy.account import FILE, Account, Release, epsilon, read_account, releases_in
from trillium.privacy.bands import WHOLE, Bands

pytest.importorskip("dp_accounting")

EQUAL = ("framework.weights=equal", "training.max_length=24")
CYCLIC = ("fleet={sampling: cyclic, clients_per_round: 1}", "data.num_clients=3")
NOISY = "privacy={name: client, noise: 0.7, clip: {name: fixed, norm: 0.5}}"


def matrix(bands: Bands, rounds: int) -> np.ndarray[Any, Any]:
    found = np.zeros((rounds, rounds))
    for lag, entry in enumerate(bands.entries[:rounds]):
        found += np.diag(np.full(rounds - lag, entry / WHOLE), -lag)
    return found


@pytest.mark.parametrize("count", [1, 2, 5])
def test_it_is_the_matrix_mechanism(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The estimate of all sums is C⁻¹(Cx + z), by an inverse that numpy computes."""
    bands, rounds, width, drawn = Bands(count), 9, 4, list[Any]()
    sums = torch.randint(-(2**24), 2**24, (rounds, width))

    def noisy(steps: torch.Tensor, deviation: int, key: bytes) -> torch.Tensor:
        drawn.append(torch.randint(-deviation, deviation, steps.shape))
        found: torch.Tensor = steps + drawn[-1]
        return found

    monkeypatch.setattr(room, "noisy", noisy)
    store: dict[str, Any] = {}
    rows = [bands.release(x, number, store, b"") for number, x in enumerate(sums, start=1)]
    noise = torch.stack(drawn).double().numpy() / WHOLE
    c = matrix(bands, rounds)
    expected = np.linalg.solve(c, c @ sums.numpy() + noise)
    assert np.allclose(torch.stack(rows).numpy(), expected, rtol=1e-12, atol=1e-3)
    assert all(len(kept) <= max(count - 1, 1) for kept in store.values())


def test_the_entries_are_those_of_the_square_root() -> None:
    """C times C is the matrix of ones, to what an entry is rounded to."""
    square = matrix(Bands(8), 8)
    assert np.allclose(square @ square, np.tril(np.ones((8, 8))), atol=16 / WHOLE)
    assert Bands(1).entries == (WHOLE,)
    assert Bands(1).norm == 1


@settings(max_examples=40)
@given(st.integers(1, 6), st.integers(1, 20), st.data())
def test_what_a_client_moves_is_what_is_counted(count: int, rounds: int, data: Any) -> None:
    """In any rounds of its turn: at most the norm of a column each, as they share no release."""
    bands, turn = Bands(count), data.draw(st.integers(0, count - 1))
    its = [n for n in range(rounds) if n % count == turn and data.draw(st.booleans())]
    moved = np.zeros(rounds)
    moved[its] = 1.0
    seen = np.linalg.norm(matrix(bands, rounds) @ moved)
    lines = [{"round": n + 1, "noise": 1.0, "every": count} for n in range(rounds)]
    counted = sum(release.count for release in releases_in(lines))
    assert seen <= bands.norm * math.sqrt(counted) + 1e-12
    assert counted == Release(1.0, every=count).over(rounds).count


def test_rounds_that_were_left_out_are_no_rounds_between(tmp_path: Path) -> None:
    """Three releases of one turn are three; one that is run again counts for all."""
    account, release = Account(tmp_path / FILE), Release(1.0, every=10)
    for number in (1, 11, 21, 22, 22):
        account.note(number, "round", release)
    assert releases_in(account.lines) == [Release(1.0), Release(1.0, count=3)]


@pytest.mark.parametrize(
    ("rounds", "target", "coins", "alone", "told"),
    [(30, 8.0, 3.65, 5.15, 2.36), (30, 2.0, 7.29, 16.5, 7.53), (100, 8.0, 8.62, 17.2, 6.95)],
)
def test_the_last_model_has_the_noise_of_another_implementation(
    rounds: int, target: float, coins: float, alone: float, told: float
) -> None:
    """The standard deviation of the sum of all rounds, in units of the bound; every tenth round."""
    from trillium.privacy.account import noise_for

    noise = noise_for(target, [Release(1.0, every=10).over(rounds)], 1e-4)
    for bands, expected in ((Bands(1), alone), (Bands(10), told)):
        errors = np.linalg.inv(matrix(bands, rounds))
        found = noise * bands.norm * np.linalg.norm(np.ones(rounds) @ errors)
        assert found == pytest.approx(expected, rel=0.01)
    noise = noise_for(target, [Release(1.0, 0.1, rounds)], 1e-4)
    assert noise * math.sqrt(rounds) == pytest.approx(coins, rel=0.01)


def test_turns_come_in_turn() -> None:
    """All are asked once in a period, as evenly as can be; who comes late gets a turn of its own."""
    turns, names = Turns(), [f"c{number}" for number in range(10)]
    seen = [turns.cohort(names, number, 4, seed=0) for number in range(1, 9)]
    assert sorted(name for cohort in seen[:4] for name in cohort) == names
    assert seen[:4] == seen[4:]
    assert {len(cohort) for cohort in seen} == {2, 3}
    more = [turns.cohort([*names, "new", "newer"], number, 5, seed=0) for number in range(1, 5)]
    assert {len(cohort) for cohort in more} == {3}
    assert all({*before} <= {*after} for before, after in zip(seen, more, strict=False))
    assert Turns().cohort(names, 1, 4, seed=1) != seen[0]


def test_one_more_client_leaves_the_turns_of_others() -> None:
    """Or its presence would be told by who else is asked; dealt out evenly, they do depend on it."""
    names = [f"c{number}" for number in range(200)]
    for even in (False, True):
        few, all_of_them = Turns(), Turns()
        few.cohort(names[1:], 1, 4, 0, even=even)
        all_of_them.cohort(names, 1, 4, 0, even=even)
        same = all(turn == all_of_them.of[name] for name, turn in few.of.items())
        assert same is not even
        sizes = [list(all_of_them.of.values()).count(turn) for turn in range(4)]
        assert max(sizes) - min(sizes) <= (1 if even else 50)


def test_a_run_asks_in_turns(hub: Path) -> None:
    run = federation(hub, *CYCLIC, "rounds=6")
    run.run()
    by_round = [entry.client for entry in run.fleet.ledger.entries if entry.direction == "up"]
    assert by_round[:3] == by_round[3:]
    assert sorted(by_round[:3]) == ["client-0", "client-1", "client-2"]


def test_turns_need_a_size(hub: Path) -> None:
    with pytest.raises(UserError, match="there are no turns"):
        experiment_config(hub, "fleet.sampling=cyclic")


def test_a_private_run_in_turns_costs_what_one_turn_costs(hub: Path, tmp_path: Path) -> None:
    config = experiment_config(hub, *EQUAL, *CYCLIC, NOISY, "rounds=4")
    run = build(config, RunFolder(tmp_path / "run", "run"))
    run.run()
    lines = read_account(tmp_path / "run" / FILE)
    assert [line["every"] for line in lines] == [3] * 4
    assert run.history[-1]["epsilon"] == epsilon([Release(0.7, count=2)], 1e-5)
    assert run.fleet.guard is not None
    assert run.fleet.guard.bands == Bands(3)


def test_what_it_adds_up_is_a_third_of_the_clients(hub: Path) -> None:
    """With noise that is nothing, the mean is that of who was asked: as in the open."""
    words = (*EQUAL, *CYCLIC, "rounds=3")
    open_run = federation(hub, *words)
    quiet = "privacy={name: client, noise: 1e-6, clip: {name: fixed, norm: 1}}"
    private = federation(hub, *words, quiet)
    open_run.run()
    private.fleet.turns = open_run.fleet.turns  # of one client each
    private.run()
    for name, tensor in trained(open_run).items():
        assert torch.allclose(trained(private)[name], tensor, rtol=0, atol=1e-4), name


def test_it_goes_on_after_it_was_killed(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same noise of rounds before; the round that runs again is counted, and drawn, anew."""
    monkeypatch.setattr("trillium.experiment.run.new_secret", lambda: bytes(32).hex())
    monkeypatch.setattr("trillium.privacy.account.Account.spent", lambda *_: 1.0)
    assert_resumes(experiment_config(hub, *EQUAL, *CYCLIC, NOISY, "rounds=4"), tmp_path)


def test_votes_have_noise_of_their_own(hub: Path) -> None:
    """Each round asks about other texts: nothing adds up, and nothing cancels."""
    words = ("framework={name: kd, ensemble: vote}", "training.max_length=24", *CYCLIC)
    run = federation(hub, *words, "privacy={name: client, noise: 0.7}", "rounds=1")
    assert run.fleet.guard is not None
    assert run.fleet.guard.bands.count == 1
    assert run.fleet.guard.release.every == 3
