"""What many opinions become: formulas written out, client by client, and what must not show."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from trillium.component import known, resolve
from trillium.frameworks.kd.ensembles import Average, Ensemble, NoisyMean, Opinions
from trillium.frameworks.kd.sharpenings import ERA, Sharpening
from trillium.tasks import IGNORE

CLIENTS, ROWS, CLASSES, T = 4, 6, 5, 2.0
NAMES = sorted(known(Ensemble))
each = pytest.mark.parametrize("name", NAMES)
both = pytest.mark.parametrize("average", ["probabilities", "logits"])


def ensemble(name: str, **options: Any) -> Ensemble:
    if name == "noisy_mean":
        options = {"noise": 0.0, **options}
    return resolve(Ensemble, {"name": name, **options})


def opinions(**changes: Any) -> Opinions:
    draw = torch.Generator().manual_seed(2)
    logits = 2 * torch.randn(CLIENTS, ROWS, CLASSES, generator=draw, dtype=torch.float64)
    given: dict[str, Any] = {
        "log_probs": logits.log_softmax(-1),
        "present": torch.ones(CLIENTS, ROWS, dtype=torch.bool),
        "sizes": torch.tensor([3.0, 1.0, 2.0, 0.5], dtype=torch.float64),
        "counts": torch.randint(1, 9, (CLIENTS, CLASSES), generator=draw).double(),
        "targets": torch.arange(ROWS) % CLASSES,
    }
    return Opinions(**{**given, **changes})


def weight(name: str, given: Opinions, client: int, row: int, column: int) -> float:
    """The weight of one opinion, from the definition of each rule."""
    p = given.log_probs[client, row].exp().tolist()
    if name in ("mean", "vote", "noisy_mean"):
        return 1.0
    if name == "size_weighted":
        return float(given.sizes[client])
    if name == "class_counts":
        assert given.counts is not None
        return float(given.counts[client, column])
    if name == "confidence":
        return math.exp(sum(x * math.log(x) for x in p) / 0.3)
    if name == "variance":
        logs = [math.log(x) for x in p]
        mean = sum(logs) / CLASSES
        return sum((x - mean) ** 2 for x in logs) / CLASSES
    assert name == "lowest_loss"
    target = int(given.targets[row])
    if target == IGNORE:
        return 1.0
    here = [c for c in range(CLIENTS) if given.present[c, row]]
    return float(client == max(here, key=lambda c: float(given.log_probs[c, row, target])))


def by_hand(name: str, given: Opinions, average: Average) -> Tensor:
    found = torch.zeros(ROWS, CLASSES, dtype=torch.float64)
    for row in range(ROWS):
        here = [c for c in range(CLIENTS) if given.present[c, row]]
        for column in range(CLASSES):
            total, weights = 0.0, 0.0
            for client in here:
                p = (given.log_probs[client, row] / T).softmax(-1)
                if name == "vote":
                    best = int(given.log_probs[client, row].argmax())
                    value = float(best == column)
                else:
                    value = float(p[column])
                    if average == "logits" and name != "noisy_mean":
                        value = math.log(value)
                w = weight(name, given, client, row, column)
                total, weights = total + w * value, weights + w
            found[row, column] = total / weights
    if average == "logits" and name not in ("vote", "noisy_mean"):
        return found.softmax(-1)
    return found / found.sum(-1, keepdim=True)


@both
@each
def test_each_rule_is_its_definition(name: str, average: Average) -> None:
    given = opinions()
    found = ensemble(name).combine(given, T, average)
    assert torch.allclose(found.exp(), by_hand(name, given, average), atol=1e-12)


@both
@each
def test_who_says_nothing_has_no_part_in_it(name: str, average: Average) -> None:
    """Absent opinions may hold anything; zeros in their place would be another teacher."""
    present = torch.ones(CLIENTS, ROWS, dtype=torch.bool)
    present[1, :3], present[3, 2], present[0, 5] = False, False, False
    given = opinions(present=present)
    found = ensemble(name).combine(given, T, average)
    assert torch.allclose(found.exp(), by_hand(name, given, average), atol=1e-12)
    junk = given.log_probs.clone()
    junk[1, 1] = torch.tensor([0.0, -80, -80, -80, -80])
    assert torch.equal(
        ensemble(name).combine(opinions(present=present, log_probs=junk), T, average), found
    )
    padded = ensemble(name).combine(opinions(), T, average)
    assert not torch.allclose(padded[:3], found[:3], atol=1e-3)
    # One client alone is its own teacher.
    alone = torch.zeros(CLIENTS, ROWS, dtype=torch.bool)
    alone[2] = True
    single = ensemble(name).combine(opinions(present=alone), T, average).exp()
    own = given.log_probs[2]
    wanted = (own / T).softmax(-1)
    if name == "vote":
        wanted = torch.nn.functional.one_hot(own.argmax(-1), CLASSES).double()
    assert torch.allclose(single, wanted, atol=1e-12)


@both
@each
def test_clients_may_come_in_any_order_and_agree(name: str, average: Average) -> None:
    given, order = opinions(), torch.tensor([2, 0, 3, 1])
    assert given.counts is not None
    turned = opinions(
        log_probs=given.log_probs[order], sizes=given.sizes[order], counts=given.counts[order]
    )
    first, second = (ensemble(name).combine(o, T, average) for o in (given, turned))
    assert torch.allclose(first, second, atol=1e-12)
    same = opinions(log_probs=given.log_probs[:1].expand(CLIENTS, -1, -1))
    agreed = ensemble(name).combine(same, T, average).exp()
    if name != "vote":
        assert torch.allclose(agreed, (given.log_probs[0] / T).softmax(-1), atol=1e-12)


@each
def test_teachers_are_distributions_even_at_the_edge(name: str) -> None:
    certain = torch.full((CLIENTS, ROWS, CLASSES), -80.0, dtype=torch.float64)
    certain[..., 0] = 0.0
    counts = torch.zeros(CLIENTS, CLASSES, dtype=torch.float64)
    found = ensemble(name).combine(
        opinions(log_probs=certain, counts=counts, targets=torch.full((ROWS,), IGNORE)),
        T,
        "probabilities",
    )
    assert bool(torch.isfinite(found).all())
    assert torch.allclose(found.exp().sum(-1), torch.ones(ROWS).double())
    assert float(found.exp()[:, 0].min()) > 0.99


def test_the_surest_of_two_is_followed() -> None:
    """A client that has the class is sure of it, another is not: their plain mean is unsure."""
    p = torch.tensor([[[0.96, 0.01, 0.01, 0.01, 0.01]], [[0.1, 0.225, 0.225, 0.225, 0.225]]])
    given = Opinions(
        p.double().log(), torch.ones(2, 1, dtype=torch.bool), torch.ones(2).double(), None,
        torch.full((1,), IGNORE),
    )  # fmt: skip
    shares = {
        name: float(ensemble(name, **options).combine(given, 1.0, "probabilities").exp()[0, 0])
        for name, options in {"mean": {}, "confidence": {"scale": 0.3}}.items()
    }
    assert shares["mean"] == pytest.approx(0.53)
    assert shares["confidence"] > 0.9


# Privacy


def test_the_noise_has_the_deviation_it_is_said_to_have() -> None:
    rule, given = NoisyMean(clip=0.5, noise=0.1), opinions()
    found = [rule.combine(given, T, "probabilities").exp() for _ in range(2000)]
    assert not torch.equal(found[0], found[1])
    softened = (given.log_probs / T).softmax(-1)
    total = (softened * (0.5 / softened.norm(dim=-1, keepdim=True)).clamp(max=1)).sum(0)
    mean, exact = torch.stack(found).mean(0), total / total.sum(-1, keepdim=True)
    assert torch.allclose(mean, exact, atol=0.01)
    spread = torch.stack(found).std(0).mean()
    # Of a share x of the sum s: the entry's own noise, less its share of the sum's.
    x, s = exact, total.sum(-1, keepdim=True)
    by_hand = (0.05 / s * ((1 - x).square() + (CLASSES - 1) * x.square()).sqrt()).mean()
    assert float(spread) == pytest.approx(float(by_hand), rel=0.1)


def test_the_same_opinions_get_the_same_noise_of_one_secret() -> None:
    """So that a run that is resumed says what it has said; of another secret, something else."""
    rule, given = NoisyMean(noise=0.5), opinions(secret=lambda: bytes(32))
    first = rule.combine(given, T, "probabilities")
    assert torch.equal(first, rule.combine(given, T, "probabilities"))
    other = opinions(secret=lambda: bytes([*bytes(31), 1]))
    assert not torch.allclose(first, rule.combine(other, T, "probabilities"), atol=0.01)


# Sharpening


def sharpened(name: str, p: Tensor, **options: Any) -> Tensor:
    rule: Sharpening = resolve(Sharpening, {"name": name, **options})
    return rule.sharpen(p.double().log().clamp(min=-80)).exp()


def test_power_keeps_what_is_certain_and_the_order() -> None:
    p = opinions().log_probs[0].exp()
    assert torch.allclose(sharpened("power", p, exponent=1.0), p, atol=1e-14)
    assert torch.allclose(sharpened("none", p), p, atol=1e-14)
    found = sharpened("power", p, exponent=1.7)
    assert torch.allclose(found, p**1.7 / (p**1.7).sum(-1, keepdim=True), atol=1e-14)
    assert torch.equal(found.argsort(-1), p.argsort(-1))
    entropies = [-(x * x.log()).sum(-1) for x in (p, found)]
    assert bool((entropies[1] < entropies[0]).all())
    certain = torch.eye(CLASSES)
    assert torch.allclose(sharpened("power", certain, exponent=3.0), certain.double(), atol=1e-12)


@pytest.mark.parametrize(("num_classes", "cap"), [(77, 0.9966), (50_257, 0.3047)])
def test_era_cannot_leave_certain_what_is(num_classes: int, cap: float) -> None:
    certain = torch.zeros(1, num_classes)
    certain[0, 0] = 1.0
    found = float(sharpened("era", certain)[0, 0])
    assert found == pytest.approx(cap, abs=1e-4)
    assert ERA().highest(num_classes) == pytest.approx(found)
    # As published: the softmax of probabilities over a temperature.
    p = opinions().log_probs[0].exp()
    assert torch.allclose(sharpened("era", p, temperature=0.1), (p / 0.1).softmax(-1), atol=1e-14)


@both
@pytest.mark.parametrize("name", [name for name in NAMES if ensemble(name).adds])
def test_what_only_adds_needs_no_more_than_the_mean_of_what_each_adds(
    name: str, average: Average
) -> None:
    given, rule = opinions(), ensemble(name)
    added = torch.stack([rule.of_row(own, T, average) for own in given.log_probs])
    found = rule.settled(added.mean(0), average)
    assert torch.allclose(found, rule.combine(given, T, average), rtol=0, atol=1e-12)
    reach = rule.reach(average)
    assert reach is None or float(added.abs().max()) <= reach


def test_noise_leaves_a_distribution() -> None:
    """Also where all of a row is below zero."""
    mean = torch.tensor([[0.5, -0.2, 0.1], [-1.0, -0.1, -0.2]], dtype=torch.float64)
    found = ensemble("vote").settled(mean, "logits").exp()
    assert torch.allclose(found[0], torch.tensor([5 / 6, 0.0, 1 / 6], dtype=torch.float64))
    assert torch.allclose(found[1], torch.full((3,), 1 / 3, dtype=torch.float64))


def test_only_mean_and_vote_add_alone() -> None:
    assert [name for name in NAMES if ensemble(name).adds] == ["mean", "vote"]
