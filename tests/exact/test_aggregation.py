"""What the mean and the robust rules must and must not change; merged LoRA = LoRA beside its weight."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tiny import EXACT, TARGETS, federation, perturb, plain_batch, plain_model
from trillium.errors import UserError
from trillium.federation.means import Contribution
from trillium.frameworks.fedllm.aggregators import Aggregator
from trillium.frameworks.fedllm.aggregators.coordinates import Median, TrimmedMean
from trillium.frameworks.fedllm.aggregators.geometric_median import GeometricMedian
from trillium.frameworks.fedllm.aggregators.krum import Krum
from trillium.frameworks.fedllm.aggregators.mean import Mean
from trillium.frameworks.fedllm.aggregators.norm_clip import NormClip
from trillium.wire.kinds import Tensors

Array = np.ndarray[Any, Any]

SHAPES = {"up": (20, 12), "down": (12, 20), "key": (6, 12), "bias": (20,), "scale": ()}


def contribution(index: int, weight: float, dtype: torch.dtype = torch.float64) -> Contribution:
    draw = torch.Generator().manual_seed(index)
    tensors = {n: torch.randn(s, generator=draw, dtype=dtype) for n, s in SHAPES.items()}
    return Contribution(f"client-{index}", weight, tensors)


def aggregate(aggregator: Aggregator, sent: Sequence[Contribution]) -> Tensors:
    return aggregator.aggregate(sent, sent[0].tensors, ()).tensors


def mean(sent: Sequence[Contribution]) -> Tensors:
    return aggregate(Mean(), sent)


def close(left: Tensors, right: Tensors, atol: float = 1e-15) -> bool:
    assert left.keys() == right.keys() == SHAPES.keys()
    return all(torch.allclose(left[n], right[n], atol=atol, rtol=0) for n in left)


CLIENTS = [contribution(index, weight) for index, weight in enumerate((3.0, 1.0, 7.0))]
MEAN = mean(CLIENTS)


def test_it_is_the_weighted_mean() -> None:
    for name in SHAPES:
        by_hand = torch.stack([c.weight * c.tensors[name] for c in CLIENTS]).sum(0) / 11.0
        assert torch.allclose(MEAN[name], by_hand, atol=1e-15, rtol=0)
    equal = mean([Contribution(c.client, 1.0, c.tensors) for c in CLIENTS])
    assert not close(equal, MEAN, atol=1e-2)


def test_a_client_may_be_split_in_two() -> None:
    halves = [Contribution(f"half-{w}", w, CLIENTS[2].tensors) for w in (2.0, 5.0)]
    assert close(mean([*CLIENTS[:2], *halves]), MEAN)
    uneven = [Contribution(f"half-{w}", w, CLIENTS[2].tensors) for w in (2.0, 9.0)]
    assert not close(mean([*CLIENTS[:2], *uneven]), MEAN, atol=1e-2)


def test_a_client_of_no_weight_changes_nothing() -> None:
    assert close(mean([*CLIENTS, contribution(9, 1e-300)]), MEAN)
    assert not close(mean([*CLIENTS, contribution(9, 1.0)]), MEAN, atol=1e-2)


def test_one_client_and_identical_clients_give_that_model() -> None:
    only = CLIENTS[0]
    assert close(mean([only]), only.tensors)
    same = [Contribution(str(i), w, only.tensors) for i, w in enumerate((0.1, 0.2, 0.7))]
    assert close(mean(same), only.tensors)
    narrow = contribution(0, 0.3, torch.float32)
    assert close(mean([narrow]), narrow.tensors, atol=0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_tensors_are_summed_in_float64(dtype: torch.dtype) -> None:
    clients = [contribution(index, 1.0 + index, dtype) for index in range(50)]
    found = mean(clients)
    total = sum(client.weight for client in clients)
    naive_differs = False
    for name, tensor in found.items():
        assert tensor.dtype == dtype
        wide = sum(c.weight / total * c.tensors[name].double() for c in clients)
        assert isinstance(wide, Tensor)
        assert torch.equal(tensor, wide.to(dtype))
        naive: Any = sum(c.weight / total * c.tensors[name] for c in clients)
        naive_differs |= not torch.equal(naive, tensor)
    assert naive_differs


def test_large_terms_that_cancel_leave_the_small_ones() -> None:
    """A float64 sum would lose them, or not, by the order in which clients answer."""
    terms = [3e8, 1e-9, -3e8, 2e-9, 1e8, -1e8, 4e-9]
    clients = [Contribution(str(i), 1.0, {"x": torch.tensor([t])}) for i, t in enumerate(terms)]
    exact = torch.tensor([math.fsum(float(c.tensors["x"]) for c in clients) / len(terms)])
    orders = [np.random.default_rng(seed).permutation(len(terms)) for seed in range(20)]
    sums = {float(sum(float(clients[i].tensors["x"]) for i in order)) for order in orders}
    assert len(sums) > 1  # what a plain sum gives
    for order in orders:
        assert torch.equal(mean([clients[i] for i in order])["x"], exact)


# Robust rules


def points(values: Array, weights: Sequence[float] = ()) -> list[Contribution]:
    """Clients whose payload is split over two tensors, which no rule may notice."""
    return [
        Contribution(
            f"client-{index:02}",
            weights[index] if weights else 1.0,
            {"head": torch.tensor(row[:1]), "tail": torch.tensor(row[None, 1:])},
        )
        for index, row in enumerate(values)
    ]


def payload(aggregator: Aggregator, sent: Sequence[Contribution]) -> Array:
    found = aggregate(aggregator, sent)
    return torch.cat([found["head"], found["tail"].flatten()]).numpy()


RANDOM = np.random.default_rng(3)
HONEST = RANDOM.normal(size=(6, 5))
WEIGHTS = [1.0, 4.0, 2.0, 2.0, 9.0, 3.0]
FAR = [1e2, 1e6, -1e12]


@pytest.mark.parametrize("far", FAR)
@pytest.mark.parametrize("num_bad", [1, 5])
def test_the_median_stays_within_the_honest_values(num_bad: int, far: float) -> None:
    bad = far * RANDOM.uniform(0.5, 1.0, size=(num_bad, 5))
    sent = points(np.concatenate([HONEST, bad]), [1.0] * 6 + [1e9] * num_bad)
    low, high = HONEST.min(0) - 1e-12, HONEST.max(0) + 1e-12
    for aggregator in (Median(), TrimmedMean(trim=0.46)):
        found = payload(aggregator, sent)
        assert ((found >= low) & (found <= high)).all()
    outside = payload(Mean(), sent)
    assert not ((outside >= low) & (outside <= high)).any()


def test_median_and_trimmed_mean_are_those_of_numpy() -> None:
    sent = points(HONEST, WEIGHTS)
    assert np.allclose(payload(Median(), sent), np.median(HONEST, axis=0), atol=1e-15)
    odd = points(HONEST[:5])
    assert np.allclose(payload(Median(), odd), np.median(HONEST[:5], axis=0), atol=1e-15)
    ordered = np.sort(HONEST, axis=0)
    for trim, cut in ((0.0, 0), (0.01, 1), (1 / 6, 1), (0.2, 2), (0.49, 2)):
        by_hand = ordered[cut : 6 - cut].mean(0)
        assert np.allclose(payload(TrimmedMean(trim=trim), sent), by_hand, atol=1e-15)
    assert not np.allclose(payload(TrimmedMean(trim=0.0), sent), payload(Mean(), sent), atol=1e-2)
    equal = points(HONEST)
    assert np.allclose(payload(TrimmedMean(trim=0.0), equal), payload(Mean(), equal), atol=1e-15)


def distances(centre: Array, values: Array) -> Array:
    return np.asarray(np.linalg.norm(values - centre, axis=1))


def test_the_geometric_median_has_the_least_sum_of_distances() -> None:
    weights = np.array([2.0, 3.0, 1.0, 2.0, 4.0, 3.0])
    found = payload(GeometricMedian(), points(HONEST, weights.tolist()))
    pulls = weights[:, None] * (HONEST - found) / distances(found, HONEST)[:, None]
    assert np.abs(pulls.sum(0)).max() < 1e-6 * weights.sum()  # the gradient is zero
    least = weights @ distances(found, HONEST)
    for _ in range(100):
        beside = found + 10.0 ** RANDOM.uniform(-3, 0) * RANDOM.normal(size=5)
        assert weights @ distances(beside, HONEST) > least
    unweighted = payload(GeometricMedian(), points(HONEST))
    assert weights @ distances(unweighted, HONEST) > least + 1e-3
    most = payload(GeometricMedian(), points(HONEST, [1.0, 1.0, 9.0, 1.0, 1.0, 1.0]))
    assert distances(most, HONEST[2:3]) < 1e-5  # who has most of the weight is followed


@pytest.mark.parametrize("far", FAR)
def test_the_geometric_median_stays_with_the_majority(far: float) -> None:
    centre = payload(GeometricMedian(), points(HONEST))
    bad = np.full((2, 5), far)
    found = payload(GeometricMedian(), points(np.concatenate([HONEST, bad])))
    reach = distances(centre, HONEST).max()
    assert np.linalg.norm(found - centre) < 2 * reach
    pulls = np.concatenate([HONEST, bad]) - found
    pulls /= np.linalg.norm(pulls, axis=1)[:, None]
    assert np.abs(pulls.sum(0)).max() < 1e-4
    assert (
        np.linalg.norm(payload(Mean(), points(np.concatenate([HONEST, bad]))) - centre) > 10 * reach
    )


@pytest.mark.parametrize("rule", [GeometricMedian(), Krum(), Krum(num_selected=3)], ids=str)
def test_what_all_clients_share_does_not_blur_their_distances(rule: Aggregator) -> None:
    shift = np.array([1e9, -1e9, 1e9, 0.0, 3e9])
    found = payload(rule, points(HONEST + shift, WEIGHTS)) - shift
    assert np.allclose(found, payload(rule, points(HONEST, WEIGHTS)), atol=1e-5)


@pytest.mark.parametrize("num_selected", [1, 3])
def test_krum_by_hand(num_selected: int) -> None:
    values = np.concatenate([HONEST, HONEST[:2] + 40.0, HONEST[:1] - 1e5])
    num, num_byzantine = len(values), 3
    scores = []
    for i in range(num):
        squares = sorted(((values[i] - values[j]) ** 2).sum() for j in range(num) if j != i)
        scores.append(sum(squares[: num - num_byzantine - 2]))
    best = np.argsort(scores)[:num_selected]
    assert set(best) <= set(range(6))
    rule = Krum(num_byzantine=num_byzantine, num_selected=num_selected)
    found = payload(rule, points(values, [*WEIGHTS, 1e9, 1e9, 1e9]))
    assert np.allclose(found, values[best].mean(0), atol=1e-12)
    with pytest.raises(UserError, match="needs 9 clients in a round, and 8 answered"):
        payload(rule, points(values[:8]))


def test_clipping_bounds_how_far_one_client_moves_the_mean() -> None:
    sent = points(HONEST, WEIGHTS)
    lengths = np.linalg.norm(HONEST, axis=1)
    for bound in (None, 0.5, 2.0, 1e9):
        most = np.median(lengths) if bound is None else bound
        clipped = HONEST * np.minimum(1.0, most / lengths)[:, None]
        by_hand = np.average(clipped, axis=0, weights=WEIGHTS)
        assert np.allclose(payload(NormClip(bound=bound), sent), by_hand, atol=1e-14)
    assert np.allclose(payload(NormClip(bound=1e9), sent), payload(Mean(), sent), atol=1e-15)
    assert not np.allclose(payload(NormClip(), sent), payload(Mean(), sent), atol=1e-2)
    worst = points(np.concatenate([HONEST, np.full((1, 5), 1e12)]), [*WEIGHTS, 3.0])
    moved = payload(NormClip(bound=2.0), worst) * 24 / 21 - payload(NormClip(bound=2.0), sent)
    assert np.linalg.norm(moved) == pytest.approx(2.0 * 3 / 21)


# Merging


def adapted_layers(module: nn.Module) -> list[Any]:
    return [layer for layer in module.modules() if hasattr(layer, "lora_A")]


def merged(module: nn.Module, *, scale: bool = True, transpose: bool = True) -> nn.Module:
    """Fold every adapter into its weight by hand: `W + alpha / r * B @ A`."""
    module = copy.deepcopy(module)
    for layer in adapted_layers(module):
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        change = b @ a * (5 / 3 if scale else 1.0)
        weight = layer.base_layer.weight
        is_conv = type(layer.base_layer).__name__ == "Conv1D"  # GPT-2 stores (in, out)
        if is_conv and transpose:
            change = change.T
        with torch.no_grad():
            weight += change.reshape(weight.shape)
            b.zero_()
    return module


@pytest.mark.parametrize("model", TARGETS)
def test_merged_lora_gives_the_logits_of_the_adapter(hub: Path, model: str) -> None:
    fed = perturb(federation(hub, model=model))
    plain = plain_model(fed).eval()
    inputs, _ = plain_batch(fed.clients[0].examples)

    def logits(module: nn.Module) -> Tensor:
        with torch.no_grad():
            found: Tensor = module(**inputs).logits
        return found

    adapted = logits(plain)
    assert torch.allclose(logits(merged(plain)), adapted, atol=EXACT[model])
    assert not torch.allclose(logits(merged(plain, scale=False)), adapted, atol=1e-3)
    if model == "gpt2":
        assert not torch.allclose(logits(merged(plain, transpose=False)), adapted, atol=1e-3)
    shapes = {tuple(layer.base_layer.weight.shape) for layer in adapted_layers(plain)}
    assert any(rows != columns for rows, columns in shapes)
    library = copy.deepcopy(plain).merge_and_unload()  # type: ignore[operator]
    assert torch.allclose(logits(library), adapted, atol=EXACT[model])
