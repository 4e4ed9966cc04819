"""What activations give away: every figure against its definition, and against what hides it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tiny import Recorder, federation, perturb, run_rounds
from trillium.errors import UserError
from trillium.experiment.run import Experiment
from trillium.frameworks.split.defences import Gaussian, gaussian_epsilon
from trillium.frameworks.split.leakage import Seen, measure
from trillium.frameworks.split.leakage.correlation import distance_correlation
from trillium.frameworks.split.leakage.labels import norm_auc
from trillium.frameworks.split.leakage.tokens import Inverter, nearest_tokens, rouge_l
from trillium.wire.message import decode

DRAW = torch.Generator().manual_seed(4)
WORDS = torch.randn(50, 16, generator=DRAW)
TURN = torch.linalg.qr(torch.randn(16, 16, generator=DRAW)).Q


def tokens(number: int, seed: int) -> Tensor:
    return torch.randint(50, (number,), generator=torch.Generator().manual_seed(seed))


def noise(rows: Tensor, size: float) -> Tensor:
    draw = torch.Generator().manual_seed(8)
    return rows + size * torch.randn(rows.shape, generator=draw)


def test_the_nearest_embedding_is_found_by_its_angle() -> None:
    wanted = tokens(300, 0)
    sizes = torch.rand(300, 1) + 0.5
    assert torch.equal(nearest_tokens(noise(WORDS[wanted] * sizes, 0.01), WORDS), wanted)
    turned = nearest_tokens(WORDS[wanted] @ TURN, WORDS)
    assert float((turned == wanted).double().mean()) < 0.2  # the control: a turn defeats it
    assert bool((nearest_tokens(torch.ones(4, 8), WORDS) == -1).all())


def test_the_inverter_learns_a_turn_and_names_tokens_that_it_has_not_seen() -> None:
    seen, wanted = tokens(2000, 1) % 40, tokens(300, 2)
    assert int(wanted.max()) > 40
    rows = noise(WORDS[seen] @ TURN, 0.05)
    inverter = Inverter(rows, seen, WORDS, seed=0)
    found = inverter.tokens(noise(WORDS[wanted] @ TURN, 0.05))
    known = wanted < 40
    assert float((found == wanted)[known].double().mean()) > 0.98
    assert float((found == wanted)[~known].double().mean()) > 0.5
    other = torch.randn(16, 16, generator=DRAW)
    lost = inverter.tokens(WORDS[wanted] @ other)
    assert float((lost == wanted).double().mean()) < 0.3


def longest(left: list[int], right: list[int]) -> int:
    """The longest common subsequence by its definition."""
    if not left or not right:
        return 0
    if left[-1] == right[-1]:
        return 1 + longest(left[:-1], right[:-1])
    return max(longest(left[:-1], right), longest(left, right[:-1]))


def test_rouge_l_is_the_f1_of_the_longest_common_subsequence() -> None:
    for seed in range(20):
        left, right = (tokens(7, seed + offset) % 4 for offset in (0, 50))
        common = longest(left.tolist(), right.tolist())
        assert rouge_l(left.tolist(), right.tolist()) == pytest.approx(2 * common / 14)
    assert rouge_l([1, 2, 3], [1, 2, 3]) == 1.0
    assert rouge_l([], [1]) == 0.0


def test_distance_correlation_by_its_definition() -> None:
    left, right = torch.randn(30, 3, generator=DRAW), torch.randn(30, 5, generator=DRAW)

    def matrix(rows: Tensor) -> list[list[float]]:
        n = len(rows)
        d = [[math.dist(a, b) for b in rows.tolist()] for a in rows.tolist()]
        row = [sum(line) / n for line in d]
        all_ = sum(row) / n
        return [[d[i][j] - row[i] - row[j] + all_ for j in range(n)] for i in range(n)]

    first, second = matrix(left), matrix(right)

    def product(a: list[list[float]], b: list[list[float]]) -> float:
        return sum(x * y for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True))

    expected = math.sqrt(
        product(first, second) / math.sqrt(product(first, first) * product(second, second))
    )
    assert distance_correlation(left, right) == pytest.approx(expected, rel=1e-9)
    assert distance_correlation(left, 3 * left + 1) == pytest.approx(1.0)
    many = torch.randn(1000, 1, generator=DRAW)
    assert distance_correlation(many, torch.randn(1000, 1, generator=DRAW)) < 0.12
    assert distance_correlation(many, many.abs()) > 0.4  # where Pearson's is zero
    assert distance_correlation(many, torch.zeros(1000, 1)) == 0.0


def test_the_area_under_the_curve_of_norms() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    labels = tokens(200, 3) % 2
    norms = torch.randn(200, generator=DRAW) + labels
    area = metrics.roc_auc_score(labels, norms)
    assert norm_auc(norms, labels) == pytest.approx(area)
    assert norm_auc(-norms, labels) == pytest.approx(area)
    assert norm_auc(torch.ones(200), labels) == 0.5
    assert norm_auc(norms, torch.zeros(200)) == 0.5


def test_noise_lowers_every_figure() -> None:
    seen, wanted = tokens(1500, 5), tokens(400, 6)

    def figures(size: float) -> dict[str, float]:
        private = Seen(noise(WORDS[wanted], size), wanted, (10,) * 40)
        public = Seen(noise(WORDS[seen], size), seen, (10,) * 150)
        return measure(private, public, WORDS, [], 0)

    found = [figures(size) for size in (0.0, 1.5, 20.0)]
    for name in found[0]:
        values = [figure[name] for figure in found]
        assert 1.01 > values[0] > values[1] > values[2], name
    assert found[0]["inverter_rouge_l"] > 0.98


def test_tokens_that_stand_everywhere_do_not_count() -> None:
    wanted = torch.tensor([1, 7, 2, 1, 9, 2])
    rows = torch.where((wanted < 3)[:, None], WORDS[wanted], -WORDS[wanted])
    private = Seen(rows, wanted, (3, 3))
    assert measure(private, private, WORDS, [1, 2], 0)["nearest_accuracy"] == 0.0
    assert measure(private, private, WORDS, [], 0)["nearest_accuracy"] == pytest.approx(4 / 6)


# Defences


def test_epsilon_of_one_gaussian_release() -> None:
    assert gaussian_epsilon(1.0, 1e-5) == pytest.approx(4.3772, abs=1e-4)  # of dp-accounting 0.6


@pytest.mark.parametrize("sensitivity", [0.3, 1.0, 5.0])
def test_epsilon_is_the_least(sensitivity: float) -> None:
    epsilon = gaussian_epsilon(sensitivity, 1e-5)
    half, offset = sensitivity / 2, epsilon / sensitivity
    above = math.erfc((offset - half) / math.sqrt(2)) / 2
    below = math.erfc((offset + half) / math.sqrt(2)) / 2
    assert above - math.exp(epsilon) * below == pytest.approx(1e-5, rel=1e-3)


def test_epsilon_grows_with_releases_and_tokens_as_it_should() -> None:
    once = Gaussian(noise=2.0).epsilon(1, 1)
    assert once["epsilon_token"] == once["epsilon_text"] == pytest.approx(4.3772, abs=1e-4)
    assert Gaussian(noise=4.0).epsilon(1, 4) == pytest.approx(once)
    assert Gaussian(noise=4.0).epsilon(4, 1)["epsilon_text"] == pytest.approx(once["epsilon_text"])
    assert math.isfinite(Gaussian(noise=0.01).epsilon(512, 20)["epsilon_text"])


def test_gaussian_noise_has_its_size_and_is_another_with_each_secret() -> None:
    rows = torch.cat([torch.full((300, 40), 1e-3), torch.full((300, 40), 100.0)])
    defence = Gaussian(clip=2.0, noise=0.5)
    first, second = (
        defence.apply(rows, lambda _: b"a" * 32),
        defence.apply(rows, lambda _: b"b" * 32),
    )
    assert not torch.equal(first, second)
    centre = torch.cat([rows[:300], torch.full((300, 40), 2.0 / math.sqrt(40))])
    errors = first - centre
    assert float(errors.std()) == pytest.approx(1.0, rel=0.03)
    assert abs(float(errors.mean())) < 0.05


# In a run


def split(hub: Path, *words: str, **options: Any) -> Experiment:
    own = ("framework=split", "framework.leakage=true", "rounds=1", "model.dtype=float32")
    return perturb(federation(hub, *own, *words, **options))


def test_a_run_says_what_activations_give_away(hub: Path) -> None:
    lines = {}
    for name, words in {
        "plain": (),
        "sign": ("wire.up=[{name: sign, kinds: [activations]}]",),
        "noise": ("framework.defence={name: gaussian, clip: 3, noise: 5}",),
    }.items():
        history = split(hub, "framework.train=server", *words, task="causal_lm").run()
        assert "leakage" not in history[0]
        lines[name] = history[-1]
    plain = lines["plain"]["leakage"]
    assert 0.2 < plain["inverter_accuracy"] <= 1
    for name in ("inverter_accuracy", "distance_correlation"):
        assert plain[name] > lines["noise"]["leakage"][name]
    assert plain != lines["sign"]["leakage"]
    assert "epsilon_token" not in lines["plain"]
    assert lines["noise"]["epsilon_token"] < lines["noise"]["epsilon_text"]
    assert lines["noise"]["epsilon_token"] == pytest.approx(gaussian_epsilon(2 / 5, 1e-5))


def test_labels_that_stay_with_the_client_show_in_gradients(hub: Path) -> None:
    line = split(hub, "framework.shape=u").run()[-1]
    assert 0.5 <= line["leakage"]["label_norm_auc"] <= 1


@pytest.mark.parametrize("train", ["server", "both"])
def test_the_defence_stands_in_front_of_what_is_sent(hub: Path, train: str) -> None:
    words = (
        f"framework.train={train}",
        "framework.defence={name: gaussian, clip: 0.5, noise: 1e-6}",
    )
    fed = split(hub, *words)
    log = Recorder(fed)
    run_rounds(fed, 1)
    sent = [
        tensor
        for _, _, reply in log.log
        for name, tensor in decode(reply).tensors.items()
        if name.startswith("activations/")
    ]
    assert sent
    assert all(torch.allclose(rows.norm(dim=-1), torch.tensor(0.5), atol=1e-3) for rows in sent)


def test_leakage_needs_a_public_set(hub: Path) -> None:
    with pytest.raises(UserError, match="not the clients'"):
        split(hub, "data.public_size=0")
