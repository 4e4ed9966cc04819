"""Which public examples a round is about, against choices written out."""

from __future__ import annotations

import copy
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from kd_help import wanted_rows
from torch import Tensor, nn

from tiny import Recorder, federation, perturb, run_rounds
from trillium.errors import UserError
from trillium.experiment.run import Experiment
from trillium.federation.frozen import frozen_features
from trillium.frameworks.kd.protocol import KD
from trillium.frameworks.kd.public import read_mask
from trillium.frameworks.kd.selections import farthest_first
from trillium.rng import generator
from trillium.wire.message import decode

ONLY_SURE = "framework.selection={name: uncertain, explore: 0}"
PART = "framework.public_per_round=5"


def kd(hub: Path, *words: str, **options: Any) -> Experiment:
    return federation(hub, "framework=kd", PART, *words, **options)


def chosen(fed: Experiment, number: int = 1) -> list[int]:
    framework = fed.config.framework
    assert isinstance(framework, KD)
    fed.server.round = number
    return framework.chosen(fed.server)


def server_module(fed: Experiment) -> nn.Module:
    """An ordinary module with the server's parameters."""
    return copy.deepcopy(fed.model.mount(fed.server.state))


def entropies(fed: Experiment) -> Tensor:
    """Of the server's predictions, example by example, in plain PyTorch."""
    module = server_module(fed)
    found = []
    for example in fed.server.public:
        p = wanted_rows(module, [example]).double().softmax(-1)
        found.append(-(p * p.log()).sum(-1).mean())
    return torch.stack(found)


def asked(log: Recorder, number: int) -> list[int]:
    """What the clients were asked about in a round."""
    asks = [decode(ask) for _, ask, _ in log.log]
    [found] = {
        tuple(read_mask(message, "control/wanted", 12))
        for message in asks
        if message.verb == "teach" and message.meta["round"] == number
    }
    return list(found)


# At random


def test_the_default_is_a_draw_of_the_round(hub: Path) -> None:
    fed = kd(hub)
    for number in (1, 2):
        order = torch.randperm(12, generator=generator(fed.config.seed, "public", number))
        assert chosen(fed, number) == sorted(order[:5].tolist())


# By entropy


@pytest.mark.parametrize("task", ["classification", "causal_lm"])
def test_the_most_uncertain_are_asked_about(hub: Path, task: str) -> None:
    fed = perturb(kd(hub, ONLY_SURE, task=task))
    log = Recorder(fed)
    before = entropies(fed)
    run_rounds(fed, 1)
    assert asked(log, 1) == sorted(before.topk(5).indices.tolist())
    assert asked(log, 1) != sorted((-before).topk(5).indices.tolist())
    # In the next round it is the model that has learnt which is asked.
    after = entropies(fed)
    assert not torch.allclose(before, after, atol=1e-4)
    assert chosen(fed, 2) == sorted(after.topk(5).indices.tolist())


def test_a_share_is_drawn_from_the_others(hub: Path) -> None:
    fed = perturb(kd(hub, "framework.selection={name: uncertain, explore: 0.4}"))
    surest = {*entropies(fed).topk(3).indices.tolist()}
    rounds = [chosen(fed, number) for number in range(1, 40)]
    assert all(len({*found}) == 5 and surest < {*found} for found in rounds)
    assert {index for found in rounds for index in found} == {*range(12)}
    never = perturb(kd(hub, ONLY_SURE))
    assert len({tuple(chosen(never, number)) for number in range(1, 40)}) == 1
    # The share is rounded up: of one example, one is drawn.
    one = perturb(kd(hub, "framework.selection=uncertain", "framework.public_per_round=1"))
    assert len({tuple(chosen(one, number)) for number in range(1, 40)}) > 4


def test_to_explore_only_is_the_random_choice(hub: Path) -> None:
    fed = perturb(kd(hub, "framework.selection={name: uncertain, explore: 1}"))
    assert [chosen(fed, n) for n in (1, 2, 3)] == [chosen(kd(hub), n) for n in (1, 2, 3)]


def test_what_the_server_computes_for_it_is_counted(hub: Path) -> None:
    for word, costs in ((ONLY_SURE, True), ("framework.selection=random", False)):
        fed = kd(hub, word)
        chosen(fed)
        assert (fed.server.meter.read().flops > 0) == costs
    diverse = kd(hub, "framework.selection=diverse")
    chosen(diverse)
    once = diverse.server.meter.read().flops
    chosen(diverse, 2)
    assert diverse.server.meter.read().flops == once > 0


# By distance


def radius(points: Tensor, centres: list[int]) -> float:
    """The distance of the point that is farthest from all centres."""
    return float(torch.cdist(points, points[centres]).amin(1).max())


def brute_order(points: Tensor, size: int) -> list[int]:
    """Greedy k-centre by trying every point at every step."""
    found = [int(torch.cdist(points, points.mean(0)[None])[:, 0].argmin())]
    while len(found) < size:
        others = [index for index in range(len(points)) if index not in found]
        gaps = [min(float(torch.dist(points[i], points[j])) for j in found) for i in others]
        found.append(others[gaps.index(max(gaps))])
    return found


@pytest.mark.parametrize("seed", range(5))
def test_the_order_is_greedy_k_centre(seed: int) -> None:
    points = torch.randn(12, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    order = farthest_first(points, 12)
    assert order == brute_order(points, 12)
    assert sorted(order) == [*range(12)]
    for size in (2, 3, 4):
        best = min(radius(points, [*centres]) for centres in combinations(range(12), size))
        assert best <= radius(points, order[:size]) <= 2 * best


def test_a_choice_that_is_not_spread_breaks_the_bound() -> None:
    clusters = torch.tensor([[0.0], [0.1], [0.2], [10.0], [20.0]])
    best = min(radius(clusters, [*centres]) for centres in combinations(range(5), 3))
    assert radius(clusters, farthest_first(clusters, 3)) <= 2 * best < radius(clusters, [0, 1, 2])


def test_points_that_are_all_the_same_have_an_order() -> None:
    assert farthest_first(torch.ones(4, 2), 4) == [0, 1, 2, 3]


def test_rounds_walk_along_the_order(hub: Path) -> None:
    fed = perturb(kd(hub, "framework.selection=diverse", "rounds=4", model="bert"))
    order = brute_order(frozen_features(fed.server, fed.server.public).double(), 12)
    log = Recorder(fed)
    run_rounds(fed, 4)
    around = order + order
    for number, start in ((1, 0), (2, 5), (3, 10), (4, 3)):
        assert asked(log, number) == sorted(around[start : start + 5])
    assert {index for number in (1, 2, 3) for index in asked(log, number)} == {*range(12)}


def test_no_more_is_ordered_than_rounds_will_ask(hub: Path) -> None:
    fed = kd(hub, "framework.selection=diverse", "rounds=2")
    assert chosen(fed) != chosen(fed, 2)
    assert len(fed.server.store["selection"]) == 10


# Settings


REFUSED = [
    (("framework.selection=uncertain", "framework.direction=client"), "does not learn"),
    (("framework.selection=uncertain", "framework.public_per_round=null"), "whole public set"),
    (("framework.selection=diverse", "framework.public_per_round=null"), "whole public set"),
]


@pytest.mark.parametrize(("words", "match"), REFUSED)
def test_selections_that_make_no_sense_are_refused(
    hub: Path, words: tuple[str, ...], match: str
) -> None:
    with pytest.raises(UserError, match=match):
        kd(hub, *words)
    kd(hub, "framework.selection=diverse", "framework.direction=client")


def test_texts_are_compared_by_classifiers_only(hub: Path) -> None:
    with pytest.raises(UserError, match="task=causal_lm"):
        kd(hub, "framework.selection=diverse", task="causal_lm")
