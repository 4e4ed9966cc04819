"""Noise that clients add in shares: how it is distributed, what it bounds, and runs of it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from masked import Losing
from papers import on_paper
from resumed import trained
from tiny import Recorder, experiment_config, federation
from trillium.errors import UserError
from trillium.federation.failed import RoundFailed
from trillium.privacy.account import Release, epsilon
from trillium.privacy.phases import REVEAL, SHARES
from trillium.privacy.shared import NoisyGrid, _table, discrete_gaussian
from trillium.privacy.sums import Shares
from trillium.wire.message import decode

pytest.importorskip("dp_accounting")

LIKE = {"parameters/a": (64, 48), "parameters/b": (40,)}
WIDTH = 64 * 48 + 40


def grid(noise: float = 1.0, fewest: int = 7, clients: int = 10, bound: float = 2.0) -> NoisyGrid:
    return NoisyGrid(LIKE, bound, Shares(noise, fewest), clients, bytes(range(16)))


def vector(number: int, length: float) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(number)
    flat = torch.randn(WIDTH, generator=draw, dtype=torch.float64)
    flat *= length / flat.norm()
    return {"parameters/a": flat[:3072].view(64, 48), "parameters/b": flat[3072:]}


@pytest.mark.parametrize("deviation", [0.7, 3.0, 40.0])
def test_a_discrete_gaussian_is_one(deviation: float) -> None:
    """By chi-squared, against the probabilities of its definition."""
    count = 200_000
    found = discrete_gaussian(count, deviation)
    reach = math.ceil(3 * deviation)
    values = np.arange(-reach, reach + 1)
    wide = np.arange(-20 * reach, 20 * reach + 1)
    shares = np.exp(-(values**2) / 2 / deviation**2) / np.exp(-(wide**2) / 2 / deviation**2).sum()
    seen = np.array([(found == value).sum() for value in values])
    chi = float(((seen - count * shares) ** 2 / (count * shares)).sum())
    assert chi < len(values) + 6 * math.sqrt(2 * len(values))
    again = discrete_gaussian(count, deviation)
    assert (found != again).mean() > 0.1  # nobody foresees it


def test_the_table_of_a_discrete_gaussian_rises_to_its_end() -> None:
    for deviation in (0.7, 88.9, 1500.0):
        table = _table(deviation)
        assert (table[1:] >= table[:-1]).all()
        assert int(table[-1]) > 2**64 - 2**12


@pytest.mark.parametrize("alive", [7, 10])
def test_the_noise_of_a_sum_has_its_variance(alive: int) -> None:
    """That of the setting where the fewest are left, and in proportion more where more are."""
    made = grid(noise=0.8)
    total = np.zeros(made.count, made.write(vector(0, 0.0)).dtype)
    sums = torch.zeros(WIDTH, dtype=torch.float64)
    for number in range(alive):
        own = vector(number, 0.5 + number)  # most of them are longer than the bound
        total += made.write(own)
        flat = torch.cat([tensor.reshape(-1) for tensor in own.values()])
        sums += flat * min(1.0, 2.0 / float(flat.norm()))
    found = made.read(total, alive)
    noise = alive * torch.cat([tensor.reshape(-1) for tensor in found.values()]) - sums
    wanted = 0.8 * 2.0 * math.sqrt(alive / 7)
    assert float(noise.std()) == pytest.approx(wanted, rel=0.05)  # of 3,112 entries, and rounding
    assert abs(float(noise.mean())) < 5 * wanted / math.sqrt(WIDTH)


@pytest.mark.parametrize("length", [1e-3, 1.0, 2.0, 1e6])
def test_no_client_adds_more_than_the_bound(length: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """In whole steps, whatever rounding does; without the noise, which is set to nothing here."""
    monkeypatch.setattr(
        "trillium.privacy.shared.discrete_gaussian", lambda count, _: np.zeros(count, np.int64)
    )
    made = grid()
    found = []
    for _ in range(20):
        whole = made.write(vector(3, length)).astype(np.int64)
        whole = np.where(whole >= 2 ** (made.bits - 1), whole - 2**made.bits, whole)
        assert math.sqrt(float(whole @ whole)) <= made.most * (1 + 1e-12)
        found.append(made.read(made.write(vector(3, length)), 1)["parameters/b"])
    wanted = vector(3, min(length, 2.0))["parameters/b"]  # right on average
    apart = float((torch.stack(found).mean(0) - wanted).norm())
    step = made.bound / made.most
    assert apart < 0.02 * float(wanted.norm()) + step * math.sqrt(40 / 20)


@pytest.mark.parametrize(
    ("width", "clients", "fewest", "most"), [(6144, 10, 7, 14), (131072, 100, 70, 14)]
)
def test_an_entry_takes_fourteen_bits_at_most(
    width: int, clients: int, fewest: int, most: int
) -> None:
    made = NoisyGrid({"a": (width,)}, 1.0, Shares(1.0, fewest), clients, b"")
    assert made.bits <= most
    assert made.deviation >= 2


def test_the_account_is_no_less_than_that_of_one_gaussian() -> None:
    """Renyi's divergence of the discrete one is at most the Gaussian's, and losses are not known."""
    for noise, count in ((1.0, 1), (4.0, 20)):
        own = epsilon([Release(noise, 1.0, count, discrete=True)], 1e-5)
        assert own > epsilon([Release(noise, 1.0, count)], 1e-5)
    assert own == pytest.approx(5.3777, abs=0.01)
    with_others = [Release(4.0, 1.0, 10), Release(4.0, 1.0, 10, discrete=True)]
    assert epsilon(with_others, 1e-5) == pytest.approx(own)


NOISY = ("sums=masked", "privacy={name: client, noise: 0.5}", "training.max_length=24")
FIVE = ("data.num_clients=5", "fleet.min_replies=4")
EQUAL = "framework.weights=equal"
RUNS = {
    "fedllm": (EQUAL, "head=class_sums"),
    "fedkseed": ("framework=fedkseed",),
    "kd": ("framework={name: kd, ensemble: vote, direction: server}",),
}


@pytest.mark.parametrize("words", RUNS.values(), ids=RUNS)
def test_a_run_has_the_noise_and_the_bytes_that_are_foreseen(
    hub: Path, words: tuple[str, ...]
) -> None:
    run = federation(hub, *NOISY, *FIVE, *words)
    log = Recorder(run)
    paper = on_paper(run)
    run.run()
    last, head = run.history[-1], 1.25 if "head=class_sums" in words else 0
    spent = [Release(0.5, 1.0, 2, discrete=True)]
    spent += [Release(0.5 * head, discrete=True)] if head else []
    assert last["epsilon"] == epsilon(spent, 1e-5)
    assert "semi-honest server" in last["adversary"]
    sent = [run.fleet.wire.unpack(reply, "up").message for *_, reply in log.log]
    added = [m for m in sent if "sums/flat" in m.tensors]
    assert len(added) == 5 * (3 if head else 2)
    assert all({*m.tensors} == {"sums/flat", "control/cost"} for m in added)
    told = [(e.client, e.verb, e.bytes) for e in paper.course.entries if e.direction == "up"]
    found = [(e.client, e.verb, e.bytes) for e in run.fleet.ledger.entries if e.direction == "up"]
    assert told == found


def test_the_noise_of_a_run_is_that_of_its_clients(hub: Path) -> None:
    """Of a bound so small that nothing else is seen: in the state it is the sum's, over all five."""
    clip = "privacy={name: client, noise: 2, clip: {name: fixed, norm: 1e-3}}"
    run = federation(hub, "sums=masked", clip, NOISY[2], *FIVE, EQUAL, "rounds=1")
    before = trained(run)
    run.run()
    moved = torch.cat([(t - before[n]).flatten() for n, t in trained(run).items()])
    assert float(moved.std()) == pytest.approx(2e-3 * math.sqrt(5 / 4) / 5, rel=0.1)


def test_fewer_than_the_noise_is_for_release_nothing(hub: Path) -> None:
    """One may be lost of five, where four bear the noise; with two lost no share is given."""
    run = federation(hub, *NOISY, *FIVE, EQUAL, "rounds=1")
    Losing(run, {(1, "train"): "client-1"})
    run.run()
    assert run.history[-1]["replied"] == 4
    run = federation(hub, *NOISY, *FIVE, EQUAL, "rounds=1")
    log = Losing(run, {(1, SHARES): "client-1", (1, "train"): "client-2"})
    with pytest.raises(RoundFailed, match="3 of 5 clients are left"):
        run.run()
    assert REVEAL not in [decode(request).verb for _, request, _ in log.log]


def test_a_noise_of_which_no_table_can_be_made_is_refused(hub: Path) -> None:
    for noise in ("noise: 1.0e+9", "epsilon: 1.0e-4"):
        words = (f"privacy={{name: client, {noise}}}", NOISY[2])
        with pytest.raises(UserError, match="nothing of what clients add would be left"):
            federation(hub, "sums=masked", *words, *FIVE, EQUAL)


BAD = {
    "fleet.min_replies=null": "how few may be in a sum",
    "privacy.noise=0": "there is none",
    "privacy.clip=adaptive": "one more number",
    "privacy.population=9": "no cohort is drawn in secret",
    "sums.bits=12": "follows from the noise",
    "framework.aggregator=median": "sum alone|by itself",
    "framework.upload=parameters": "where the state lies|values differ",
    "head=ridge": "one by one|own data",
    "wire.up=[top_k]": "nothing is sent up|depends on the values",
}


@pytest.mark.parametrize(("word", "why"), BAD.items(), ids=BAD)
def test_what_would_break_it_is_refused(hub: Path, word: str, why: str) -> None:
    with pytest.raises(UserError, match=why):
        experiment_config(hub, *NOISY, *FIVE, EQUAL, word)
