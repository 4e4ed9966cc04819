"""What becomes of LoRA's factors: the weighted mean of `scale * B_k @ A_k`, or the best there is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from trillium.federation.means import Contribution
from trillium.frameworks.fedllm.aggregators import Aggregate, Aggregator
from trillium.frameworks.fedllm.aggregators.fedex import FedEx
from trillium.frameworks.fedllm.aggregators.hetlora import HetLora
from trillium.frameworks.fedllm.aggregators.lowrank import residual, sent
from trillium.frameworks.fedllm.aggregators.mean import Mean
from trillium.frameworks.fedllm.aggregators.product_sketch import ProductSketch
from trillium.frameworks.fedllm.aggregators.rank_wise import RankWise
from trillium.frameworks.fedllm.aggregators.stack import Stack
from trillium.frameworks.fedllm.aggregators.svd import Svd
from trillium.models.factors import Factors
from trillium.wire.kinds import Tensors

Array = np.ndarray[Any, Any]

RANK = 4
# No layer is square: a transpose cannot hide. The last is too small for the stacks to be the smaller.
SIZES = [(40, 30), (26, 50), (7, 9)]
LAYERS = [
    Factors(f"layer{i}", f"layer{i}.A", f"layer{i}.B", scale, transposed=bool(i % 2))
    for i, scale in enumerate((5 / 3, 0.5, 2.0))
]
WEIGHTS = (3.0, 1.0, 7.0, 2.0)
MIXED = (1, 4, 2, 3)
HEAD = (5, 11)
ids = pytest.mark.parametrize("layer", range(3))


def draw(seed: int, rank: int, dtype: torch.dtype = torch.float64) -> Tensors:
    source = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=source, dtype=torch.float64).to(dtype)

    tensors = {"head": normal(*HEAD)}
    for layer, (out, width) in zip(LAYERS, SIZES, strict=True):
        tensors |= {layer.a: normal(rank, width), layer.b: normal(out, rank)}
    return tensors


def clients(
    ranks: Sequence[int] = (RANK,) * 4, dtype: torch.dtype = torch.float64
) -> list[Contribution]:
    return [
        Contribution(f"client-{i}", weight, draw(i, rank, dtype))
        for i, (weight, rank) in enumerate(zip(WEIGHTS, ranks, strict=True))
    ]


def aggregate(
    aggregator: Aggregator, given: Sequence[Contribution], dtype: torch.dtype = torch.float64
) -> Aggregate:
    return aggregator.aggregate(given, draw(77, RANK, dtype), LAYERS)


def array(tensor: Tensor) -> Array:
    return np.asarray(tensor.double().numpy())


def exact(given: Sequence[Contribution], layer: Factors) -> Array:
    """The weighted mean of the clients' changes of a weight, as dense matrices."""
    changes = [layer.scale * array(c.tensors[layer.b]) @ array(c.tensors[layer.a]) for c in given]
    return np.average(changes, axis=0, weights=[c.weight for c in given])


def change(found: Aggregate, layer: Factors) -> Array:
    """What the weight of a layer differs by from the base that the round began with."""
    out, width = SIZES[LAYERS.index(layer)]
    total = np.zeros((out, width))
    if layer.a in found.tensors:
        b, a = array(found.tensors[layer.b]), array(found.tensors[layer.a])
        total += layer.scale * b @ a
    if layer.layer in found.folds:
        fold = found.folds[layer.layer]
        total += array(fold.left) @ array(fold.right)
    return total


def error(found: Array, wanted: Array) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def truncated(matrix: Array, rank: int) -> Array:
    u, sigma, vt = np.linalg.svd(matrix, full_matrices=False)
    return np.asarray((u[:, :rank] * sigma[:rank]) @ vt[:rank])


# Rules that lose nothing

EXACT: list[tuple[Aggregator, Sequence[int]]] = [
    (FedEx(), (RANK,) * 4),
    (FedEx(rank=3 * RANK), (RANK,) * 4),
    (Stack(), (RANK,) * 4),
    (Stack(), MIXED),
    (Svd(fold_rest=True), (RANK,) * 4),
    (Svd(fold_rest=True), MIXED),
    (Svd(), (1, 1, 1, 1)),  # the mean has rank 4, and fits
]


@ids
@pytest.mark.parametrize(("aggregator", "ranks"), EXACT, ids=str)
def test_the_product_is_the_mean_of_the_products(
    aggregator: Aggregator, ranks: Sequence[int], layer: int
) -> None:
    given = clients(ranks)
    found = aggregate(aggregator, given)
    assert error(change(found, LAYERS[layer]), exact(given, LAYERS[layer])) < 1e-14
    narrow = clients(ranks, torch.float32)
    found = aggregate(aggregator, narrow, torch.float32)
    assert error(change(found, LAYERS[layer]), exact(narrow, LAYERS[layer])) < 1e-6


def mistaken(given: Sequence[Contribution], layer: Factors) -> dict[str, Array]:
    """Mistakes of public implementations."""
    shares = np.array([c.weight for c in given]) / sum(c.weight for c in given)
    pairs = [(array(c.tensors[layer.b]), array(c.tensors[layer.a])) for c in given]
    products = np.stack([layer.scale * b @ a for b, a in pairs])
    mean_b = sum(w * b for w, (b, _) in zip(shares, pairs, strict=True))
    mean_a = sum(w * a for w, (_, a) in zip(shares, pairs, strict=True))
    u, sigma, vt = np.linalg.svd(np.einsum("k,kij->ij", shares, products), full_matrices=False)
    return {
        "weights on both factors": np.einsum("k,kij->ij", shares**2, products),
        "no scale": np.einsum("k,kij->ij", shares, products) / layer.scale,
        "no weights": products.mean(0),
        "the first client alone": shares[0] * products[0],
        "mean of the factors": layer.scale * mean_b @ mean_a,
        "a root of sigma lost": (u[:, :RANK] * np.sqrt(sigma[:RANK])) @ vt[:RANK],
    }


@ids
def test_public_mistakes_would_be_seen(layer: int) -> None:
    given = clients()
    for name, wrong in mistaken(given, LAYERS[layer]).items():
        assert error(wrong, exact(given, LAYERS[layer])) > 0.1, name
    rows, columns = exact(given, LAYERS[layer]).shape
    assert rows != columns  # nor does a transpose fit


def test_stack_and_fedex_give_the_same_weights() -> None:
    given = clients()
    stacked, averaged = aggregate(Stack(), given), aggregate(FedEx(), given)
    for layer in LAYERS:
        assert error(change(stacked, layer), change(averaged, layer)) < 1e-14
        assert layer.a not in stacked.tensors
        assert torch.equal(averaged.tensors[layer.a], aggregate(Mean(), given).tensors[layer.a])


@pytest.mark.parametrize(
    "aggregator", [FedEx(), Stack(), Svd(), HetLora(), RankWise(), Mean()], ids=str
)
def test_the_head_is_the_weighted_mean(aggregator: Aggregator) -> None:
    given = clients()
    heads = [array(c.tensors["head"]) for c in given]
    found = array(aggregate(aggregator, given).tensors["head"])
    assert np.allclose(found, np.average(heads, axis=0, weights=WEIGHTS), atol=1e-15)
    assert not np.allclose(found, np.mean(heads, axis=0), atol=1e-2)


def test_fold_factors_never_outgrow_the_layer() -> None:
    for aggregator in (FedEx(), Stack()):
        folds = aggregate(aggregator, clients()).folds
        most = (3 if isinstance(aggregator, FedEx) else 4) * RANK
        for layer, size in zip(LAYERS, SIZES, strict=True):
            assert folds[layer.layer].left.shape[1] == min(most, *size)


# FedEx


@ids
def test_the_residual_is_the_spread_of_the_factors(layer: int) -> None:
    given, factors = clients(), LAYERS[layer]
    a = np.stack([array(c.tensors[factors.a]) for c in given])
    b = np.stack([array(c.tensors[factors.b]) for c in given])
    shares = np.array(WEIGHTS) / sum(WEIGHTS)
    mean_a, mean_b = np.einsum("k,kij->ij", shares, a), np.einsum("k,kij->ij", shares, b)
    spread = factors.scale * sum(
        w * (y - mean_b) @ (x - mean_a) for w, x, y in zip(shares, a, b, strict=True)
    )
    fold = aggregate(FedEx(), given).folds[factors.layer]
    found = array(fold.left) @ array(fold.right)
    assert error(found, spread) < 1e-14
    lefts, _ = residual(sent(given, factors), factors.scale)
    assert sum(left.shape[1] for left in lefts) == 3 * RANK
    assert np.linalg.matrix_rank(spread) == min(3 * RANK, *SIZES[layer])


@ids
def test_there_is_no_residual_where_a_factor_is_common(layer: int) -> None:
    given, factors = clients(), LAYERS[layer]
    for common in (factors.a, factors.b):
        held = given[0].tensors[common]
        alike = [replace(c, tensors={**c.tensors, common: held}) for c in given]
        assert factors.layer not in aggregate(FedEx(), alike).folds


@ids
@pytest.mark.parametrize("rank", [1, 5])
def test_a_truncated_residual_is_the_best_of_its_rank(layer: int, rank: int) -> None:
    given, name = clients(), LAYERS[layer].layer
    whole = aggregate(FedEx(), given).folds[name]
    fold = aggregate(FedEx(rank=rank), given).folds[name]
    assert fold.left.shape[1] == rank
    best = truncated(array(whole.left) @ array(whole.right), rank)
    assert error(array(fold.left) @ array(fold.right), best) < 1e-13


# A factor that is common to all


@pytest.mark.parametrize("common", ["A", "B"])
def test_the_mean_is_exact_where_a_factor_is_common(common: str) -> None:
    shared = {n: t for n, t in draw(9, RANK).items() if n.endswith(common)}
    given = [replace(c, tensors=c.tensors | shared) for c in clients()]
    found = aggregate(Mean(), given)
    for layer in LAYERS:
        assert error(change(found, layer), exact(given, layer)) < 1e-14
    assert sketched(given) < 1e-14
    assert aggregate(FedEx(), given).folds.keys() <= {layer.layer for layer in LAYERS}
    free = aggregate(Mean(), clients())
    assert all(error(change(free, layer), exact(clients(), layer)) > 0.1 for layer in LAYERS)


def sketched(given: Sequence[Contribution]) -> float:
    """Return the error of averaging factors as a round measures it."""
    sketch = ProductSketch(LAYERS, seed=0)
    for contribution in given:
        sketch.add(contribution.weight, contribution.tensors)
    return sketch.error()


def test_the_product_error_is_that_of_the_mean() -> None:
    given = clients()
    found = aggregate(Mean(), given)
    wrong = [np.linalg.norm(change(found, layer) - exact(given, layer)) for layer in LAYERS]
    whole = [np.linalg.norm(exact(given, layer)) for layer in LAYERS]
    by_hand = np.linalg.norm(wrong) / np.linalg.norm(whole)
    assert sketched(given) == pytest.approx(by_hand, rel=0.2)  # seen in some random directions
    zeros = [replace(c, tensors={n: 0 * t for n, t in c.tensors.items()}) for c in given]
    assert sketched(zeros) == 0.0


@pytest.mark.parametrize("aggregator", [FedEx(), Svd(), HetLora(), RankWise()], ids=str)
def test_a_factor_that_crosses_alone_is_averaged(aggregator: Aggregator) -> None:
    """The other one is common to all; where ranks are mixed, its missing columns count as zero."""
    alone = [
        replace(c, tensors={n: t for n, t in c.tensors.items() if not n.endswith("A")})
        for c in clients()
    ]
    found = aggregate(aggregator, alone)
    for layer in LAYERS:
        wanted = aggregate(Mean(), clients()).tensors[layer.b]
        assert torch.allclose(found.tensors[layer.b], wanted, atol=1e-15)
    half = [alone[0], *clients()[1:]]
    if not isinstance(aggregator, RankWise):
        with pytest.raises(ValueError, match="different factors"):
            aggregate(aggregator, half)


# SVD


@ids
@pytest.mark.parametrize("ranks", [(RANK,) * 4, MIXED])
def test_the_svd_is_the_dense_one_cut_off(layer: int, ranks: Sequence[int]) -> None:
    given, factors = clients(ranks), LAYERS[layer]
    found = aggregate(Svd(), given)
    wanted = exact(given, factors)
    assert error(change(found, factors), truncated(wanted, RANK)) < 1e-13
    sigma = np.linalg.svd(wanted, compute_uv=False)
    lost = np.linalg.norm(change(found, factors) - wanted)
    assert lost == pytest.approx(np.sqrt((sigma[RANK:] ** 2).sum()), rel=1e-12)
    a, b = found.tensors[factors.a], found.tensors[factors.b]
    for rank in range(1, RANK + 1):  # what a client of a lower rank takes is the best for it, too
        part = factors.scale * array(b[:, :rank]) @ array(a[:rank])
        assert error(part, truncated(wanted, rank)) < 1e-13
    largest = b.gather(0, b.abs().argmax(0, keepdim=True))
    assert bool((largest > 0).all())  # which of the two signs a library chooses plays no part
    # Both factors share the singular values evenly.
    each = torch.diag(torch.from_numpy(sigma[:RANK] / factors.scale))
    assert torch.allclose(b.T @ b, each, atol=1e-12)
    assert torch.allclose(a @ a.T, each, atol=1e-12)


@ids
def test_no_adapter_of_that_rank_beats_it(layer: int) -> None:
    given, factors = clients(), LAYERS[layer]
    wanted = exact(given, factors)
    found = aggregate(Svd(), given)
    least = np.linalg.norm(change(found, factors) - wanted)
    rivals = [
        change(aggregate(rule, given), factors) for rule in (Mean(), HetLora(), RankWise())
    ] + [factors.scale * array(c.tensors[factors.b]) @ array(c.tensors[factors.a]) for c in given]
    source = np.random.default_rng(5)
    a, b = array(found.tensors[factors.a]), array(found.tensors[factors.b])
    for size in (1e-4, 1e-2, 1.0):
        beside = [x + size * source.normal(size=x.shape) for x in (b, a)]
        rivals.append(factors.scale * beside[0] @ beside[1])
    start: Array = np.asarray(source.normal(size=a.shape))
    for _ in range(30):  # alternating least squares comes near, and not below
        left = wanted @ np.linalg.pinv(start)
        start = np.linalg.pinv(left) @ wanted
        rivals.append(left @ start)
    for rival in rivals:
        assert np.linalg.norm(rival - wanted) >= least * (1 - 1e-12)


@ids
def test_rotating_a_clients_factors_changes_nothing(layer: int) -> None:
    factors, given = LAYERS[layer], clients()
    turn = torch.linalg.qr(torch.randn(RANK, RANK, generator=torch.Generator().manual_seed(1)))[0]
    stretch = (turn.double() * torch.tensor([2.0, -1.0, 0.5, 3.0])).contiguous()
    turned = dict(given[1].tensors)
    turned[factors.a] = torch.linalg.inv(stretch) @ turned[factors.a]
    turned[factors.b] = turned[factors.b] @ stretch
    rotated = [given[0], replace(given[1], tensors=turned), *given[2:]]
    for rule in (Svd(), Stack(), FedEx(), Svd(fold_rest=True)):
        before, after = aggregate(rule, given), aggregate(rule, rotated)
        assert error(change(after, factors), change(before, factors)) < 1e-12
    signs = aggregate(Svd(), rotated).tensors[factors.b], aggregate(Svd(), given).tensors[factors.b]
    assert torch.allclose(*signs, atol=1e-10)  # even the factors, whose signs are fixed
    mean = aggregate(Mean(), rotated)
    assert error(change(mean, factors), change(aggregate(Mean(), given), factors)) > 0.1


def test_components_that_the_mean_lacks_can_still_learn() -> None:
    """Two zeros beside each other have no gradient; `A` stays as it is beside a zero `B`."""
    low = draw(3, 1)
    found = aggregate(Svd(), [Contribution("a", 1.0, low), Contribution("b", 2.0, low)])
    for layer in LAYERS:
        assert torch.equal(found.tensors[layer.a][1:], draw(77, RANK)[layer.a][1:])
        assert float(found.tensors[layer.b][:, 1:].abs().max()) == 0.0
        product = layer.scale * array(low[layer.b]) @ array(low[layer.a])
        assert error(change(found, layer), product) < 1e-14


# Averages of padded factors


def padded(tensor: Tensor, dim: int) -> Array:
    missing = [(0, RANK - n if d == dim else 0) for d, n in enumerate(tensor.shape)]
    return np.pad(array(tensor), missing)


def norms(given: Sequence[Contribution], layer: Factors) -> Array:
    products = [array(c.tensors[layer.b]) @ array(c.tensors[layer.a]) for c in given]
    return np.array([layer.scale * np.linalg.norm(product) for product in products])


@pytest.mark.parametrize("key", [lambda layer: (layer.a, 0), lambda layer: (layer.b, 1)])
@pytest.mark.parametrize("ranks", [MIXED, (1, 2, 2, 3)])
def test_hetlora_weighs_by_norms_and_haflq_by_component(
    key: Callable[[Factors], tuple[str, int]], ranks: Sequence[int]
) -> None:
    given = clients(ranks)
    for layer in LAYERS:
        name, dim = key(layer)
        stack = np.stack([padded(c.tensors[name], dim) for c in given])
        by_norm = np.average(stack, axis=0, weights=norms(given, layer))
        has = np.moveaxis(np.arange(RANK) < np.array(ranks)[:, None], 1, -1).astype(float)
        weights = np.array(WEIGHTS)[:, None] * has
        form = (4, RANK, 1) if dim == 0 else (4, 1, RANK)
        total = np.maximum(weights.sum(0).reshape(form[1:]), 1e-9)
        by_component = (weights.reshape(form) * stack).sum(0) / total
        het = array(aggregate(HetLora(), given).tensors[name])
        wise = array(aggregate(RankWise(), given).tensors[name])
        assert np.allclose(wise, by_component, atol=1e-14)
        most = max(ranks)
        kept = [slice(None)] * 2
        kept[dim] = slice(0, most)
        assert np.allclose(het[tuple(kept)], by_norm[tuple(kept)], atol=1e-14)
        assert not np.allclose(het, np.average(stack, axis=0, weights=WEIGHTS), atol=1e-2)
        assert not np.allclose(wise, np.average(stack, axis=0, weights=WEIGHTS), atol=1e-2)
        kept[dim] = slice(most, None)
        assert np.array_equal(het[tuple(kept)], array(draw(77, RANK)[name])[tuple(kept)])
        assert not wise[tuple(kept)].any()
