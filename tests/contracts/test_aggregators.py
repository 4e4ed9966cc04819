"""What every aggregator promises: shapes, dtypes and inputs kept, no order, scale and heads in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trillium.component import known
from trillium.errors import UserError
from trillium.federation.means import Contribution
from trillium.frameworks.fedllm.aggregators import Aggregate, Aggregator
from trillium.models.factors import Factors
from trillium.wire.kinds import Tensors

AGGREGATORS = cast(dict[str, type[Aggregator]], known(Aggregator))
MIXING = [name for name, member in AGGREGATORS.items() if member.mixes_ranks]
# In these the number of clients counts, not only their weights.
UNWEIGHTED = {"hetlora", "krum", "median", "norm_clip", "trimmed_mean"}
RANK, WIDTH = 3, 12
LAYERS = [
    Factors("layers.0.up", "layers.0.up.lora_A", "layers.0.up.lora_B", 2.0, False),
    Factors("layers.0.down", "layers.0.down.lora_A", "layers.0.down.lora_B", 0.5, True),
]
SHAPES: dict[str, tuple[int, ...]] = {
    LAYERS[0].a: (RANK, WIDTH),
    LAYERS[0].b: (20, RANK),
    LAYERS[1].a: (RANK, 20),
    LAYERS[1].b: (WIDTH, RANK),
    "score.weight": (5, WIDTH),
    "score.bias": (5,),
    "temperature": (),
}
HEADS = [name for name in SHAPES if "lora" not in name]
NUM = 7
each = pytest.mark.parametrize("name", AGGREGATORS)


def draw(seed: int, rank: int = RANK, dtype: torch.dtype = torch.float32) -> Tensors:
    """Random tensors as a client of a rank would send them."""
    source = torch.Generator().manual_seed(seed)
    tensors = {n: torch.randn(s, generator=source).to(dtype) for n, s in SHAPES.items()}
    for layer in LAYERS:
        tensors[layer.a] = tensors[layer.a][:rank].clone()
        tensors[layer.b] = tensors[layer.b][:, :rank].clone()
    return tensors


LIKE = draw(100)


def clients(num: int = NUM, dtype: torch.dtype = torch.float32) -> list[Contribution]:
    return [Contribution(f"client-{i}", 1.0 + i, draw(i, dtype=dtype)) for i in range(num)]


def mixed() -> list[Contribution]:
    return [Contribution(f"client-{i}", 1.0 + i, draw(i, 1 + i % RANK)) for i in range(NUM)]


def reduce(aggregator: Aggregator, sent: Sequence[Contribution], like: Tensors = LIKE) -> Aggregate:
    reduction = aggregator.begin(like, LAYERS)
    for contribution in sent:
        reduction.add(contribution)
    return reduction.result()


def change(found: Aggregate, layer: Factors) -> Tensor:
    """What a layer's weight differs by from the base that the round began with."""
    total = torch.zeros(SHAPES[layer.b][0], SHAPES[layer.a][1], dtype=torch.float64)
    if layer.a in found.tensors:
        total += layer.scale * found.tensors[layer.b].double() @ found.tensors[layer.a].double()
    if layer.layer in found.folds:
        fold = found.folds[layer.layer]
        total += fold.left.double() @ fold.right.double()
    return total


def product(tensors: Tensors, layer: Factors) -> Tensor:
    return layer.scale * tensors[layer.b].double() @ tensors[layer.a].double()


def same_bits(left: Aggregate, right: Aggregate) -> bool:
    assert left.tensors.keys() == right.tensors.keys()
    assert left.folds.keys() == right.folds.keys()
    pairs = [(left.tensors[n], right.tensors[n]) for n in left.tensors]
    pairs += [(left.folds[n].left, right.folds[n].left) for n in left.folds]
    pairs += [(left.folds[n].right, right.folds[n].right) for n in left.folds]
    return all(torch.equal(one, other) for one, other in pairs)


def agree(found: Aggregate, other: Aggregate, atol: float = 1e-5) -> bool:
    heads = all(torch.allclose(found.tensors[n], other.tensors[n], atol=atol) for n in HEADS)
    return heads and all(
        torch.allclose(change(found, layer), change(other, layer), atol=atol) for layer in LAYERS
    )


def is_model(found: Aggregate, tensors: Tensors, atol: float = 1e-5) -> bool:
    """Whether an aggregate computes what a client's tensors do; factors may be rotated."""
    heads = all(torch.allclose(found.tensors[n], tensors[n], atol=atol) for n in HEADS)
    return heads and all(
        torch.allclose(change(found, layer), product(tensors, layer), atol=atol) for layer in LAYERS
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@each
def test_names_shapes_and_dtypes_are_those_of_the_server(name: str, dtype: torch.dtype) -> None:
    aggregator = AGGREGATORS[name]()
    sent, like = clients(dtype=dtype), draw(100, dtype=dtype)
    before = [{n: t.clone() for n, t in client.tensors.items()} for client in sent]
    found = reduce(aggregator, sent, like)
    gone = {n for n in SHAPES if "lora" in n} if aggregator.restarts else set()
    assert {n: tuple(t.shape) for n, t in found.tensors.items()} == {
        n: s for n, s in SHAPES.items() if n not in gone
    }
    tensors = list(found.tensors.values())
    for layer in LAYERS:
        if layer.layer in found.folds:
            fold = found.folds[layer.layer]
            assert fold.left.shape == (SHAPES[layer.b][0], fold.right.shape[0])
            assert fold.right.shape[1] == SHAPES[layer.a][1]
            tensors += [fold.left, fold.right]
    assert all(tensor.dtype == dtype for tensor in tensors)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors)
    for client, old in zip(sent, before, strict=True):
        assert all(torch.equal(client.tensors[n], old[n]) for n in old)
    assert all(torch.equal(like[n], tensor) for n, tensor in draw(100, dtype=dtype).items())


@each
@settings(max_examples=12, deadline=None)
@given(order=st.permutations(range(NUM)), spread=st.integers(0, 6))
def test_who_answers_first_shows_in_no_bit(name: str, order: list[int], spread: int) -> None:
    sent = [
        replace(c, tensors={n: t * 10.0 ** (spread * (i % 3 - 1)) for n, t in c.tensors.items()})
        for i, c in enumerate(clients())
    ]
    aggregator = AGGREGATORS[name]()
    assert same_bits(reduce(aggregator, sent), reduce(aggregator, [sent[index] for index in order]))


@each
def test_a_reduction_is_the_aggregate(name: str) -> None:
    aggregator = AGGREGATORS[name]()
    assert same_bits(reduce(aggregator, clients()), aggregator.aggregate(clients(), LIKE, LAYERS))


@each
def test_equal_clients_give_their_model(name: str) -> None:
    only = clients(1)[0]
    same = [Contribution(f"client-{i}", 1.0 + i, only.tensors) for i in range(NUM)]
    found = reduce(AGGREGATORS[name](), same)
    assert is_model(found, only.tensors)
    assert not is_model(found, clients(2)[1].tensors)


@each
def test_one_client_gives_its_model(name: str) -> None:
    only, aggregator = clients(1), AGGREGATORS[name]()
    if aggregator.min_clients > 1:
        return
    found = reduce(aggregator, only)
    assert is_model(found, only[0].tensors)
    held = [*found.tensors.values(), *(f.left for f in found.folds.values())]
    assert {t.data_ptr() for t in held}.isdisjoint(t.data_ptr() for t in only[0].tensors.values())


@each
def test_nothing_comes_of_nothing(name: str) -> None:
    zeros = {n: torch.zeros(s) for n, s in SHAPES.items()}
    found = reduce(AGGREGATORS[name](), [replace(c, tensors=zeros) for c in clients()])
    assert is_model(found, zeros, atol=0.0)


@each
def test_heads_are_in_it(name: str) -> None:
    """Two public systems drop the task head; here all clients' heads move it."""
    aggregator = AGGREGATORS[name]()
    sent = clients()
    moved = [
        replace(c, tensors={n: t + 1.0 if n in HEADS else t for n, t in c.tensors.items()})
        for c in sent
    ]
    old, new = reduce(aggregator, sent), reduce(aggregator, moved)
    # Norms and neighbours may change with it, so only the direction is common to all rules.
    for head in HEADS:
        assert float((new.tensors[head] - old.tensors[head]).mean()) > 0.3


@pytest.mark.parametrize("name", sorted(AGGREGATORS.keys() - UNWEIGHTED))
def test_a_client_may_be_split_in_two(name: str) -> None:
    aggregator, sent = AGGREGATORS[name](), clients()
    last = sent[-1]
    halves = [Contribution(f"half-{w}", w, last.tensors) for w in (2.0, last.weight - 2.0)]
    assert agree(reduce(aggregator, [*sent[:-1], *halves]), reduce(aggregator, sent))
    uneven = [Contribution(f"half-{w}", w, last.tensors) for w in (2.0, 9.0 * last.weight)]
    assert not agree(reduce(aggregator, [*sent[:-1], *uneven]), reduce(aggregator, sent), 1e-3)


@pytest.mark.parametrize("name", sorted(AGGREGATORS.keys() - UNWEIGHTED))
def test_a_client_of_next_to_no_weight_changes_nothing(name: str) -> None:
    aggregator, sent = AGGREGATORS[name](), clients()
    extra = [*sent, Contribution("stranger", 1e-12, draw(55))]
    assert agree(reduce(aggregator, extra), reduce(aggregator, sent))
    extra = [*sent, Contribution("stranger", 20.0, draw(55))]
    assert not agree(reduce(aggregator, extra), reduce(aggregator, sent), 1e-3)


def test_those_that_count_clients_are_known() -> None:
    assert AGGREGATORS.keys() >= UNWEIGHTED


@each
def test_mixed_ranks_are_taken_or_refused(name: str) -> None:
    aggregator = AGGREGATORS[name]()
    if not aggregator.mixes_ranks:
        with pytest.raises(ValueError, match="not"):
            reduce(aggregator, mixed())
        return
    found = reduce(aggregator, mixed())
    for key, tensor in found.tensors.items():
        assert tuple(tensor.shape) == SHAPES[key]
        assert bool(torch.isfinite(tensor).all())
    assert all(float(change(found, layer).norm()) > 0.1 for layer in LAYERS)
    assert same_bits(found, reduce(aggregator, mixed()[::-1]))


@pytest.mark.parametrize("name", MIXING)
def test_clients_of_one_lower_rank_give_their_model(name: str) -> None:
    low = draw(3, rank=2)
    same = [Contribution(f"client-{i}", 1.0 + i, low) for i in range(NUM)]
    found = reduce(AGGREGATORS[name](), same)
    for layer in LAYERS:
        fold = found.folds.get(layer.layer)
        total = 0 if fold is None else fold.left.double() @ fold.right.double()
        if layer.a in found.tensors:
            a, b = found.tensors[layer.a].double(), found.tensors[layer.b].double()
            total = total + layer.scale * b[:, :2] @ a[:2]
        assert isinstance(total, Tensor)
        assert torch.allclose(total, product(low, layer), atol=1e-5)


@each
def test_what_a_client_did_not_send_is_averaged_over_the_others(name: str) -> None:
    aggregator, sent = AGGREGATORS[name](), clients()
    gone = {LAYERS[1].a, LAYERS[1].b, "score.bias"}
    fewer = {n: t for n, t in sent[0].tensors.items() if n not in gone}
    partial = [replace(sent[0], tensors=fewer), *sent[1:]]
    if not aggregator.takes_parts:
        with pytest.raises(ValueError, match="different tensors"):
            reduce(aggregator, partial)
        return
    found, others = reduce(aggregator, partial), reduce(aggregator, sent[1:])
    everyone = reduce(aggregator, sent)
    assert torch.allclose(found.tensors["score.bias"], others.tensors["score.bias"], atol=1e-6)
    assert torch.allclose(
        found.tensors["score.weight"], everyone.tensors["score.weight"], atol=1e-6
    )
    assert torch.allclose(change(found, LAYERS[1]), change(others, LAYERS[1]), atol=1e-5)
    assert torch.allclose(change(found, LAYERS[0]), change(everyone, LAYERS[0]), atol=1e-5)


@each
def test_names_that_nobody_sent_are_absent(name: str) -> None:
    """A round may share one factor only, as RoLoRA does; the mean of the other one is exact then."""
    aggregator = AGGREGATORS[name]()
    one_factor = [
        replace(c, tensors={n: t for n, t in c.tensors.items() if "lora_A" not in n})
        for c in clients()
    ]
    if aggregator.restarts:
        with pytest.raises(ValueError, match="one factor"):
            reduce(aggregator, one_factor)
        return
    found = reduce(aggregator, one_factor)
    assert found.tensors.keys() == {n for n in SHAPES if "lora_A" not in n}
    assert not found.folds


@each
def test_strange_names_and_shapes_are_refused(name: str) -> None:
    only = clients(1)[0]
    strange: list[dict[str, Tensor]] = [{"elsewhere": torch.zeros(3)}]
    strange += [{"score.bias": torch.zeros(n)} for n in (4, 6)]
    strange += [{LAYERS[0].a: torch.zeros(RANK, WIDTH + 1)}]
    strange += [{LAYERS[0].a: torch.zeros(RANK + 1, WIDTH), LAYERS[0].b: torch.zeros(20, RANK + 1)}]
    strange += [{LAYERS[0].a: torch.zeros(RANK - 1, WIDTH)}]
    strange += [{LAYERS[0].a: torch.zeros(0, WIDTH), LAYERS[0].b: torch.zeros(20, 0)}]
    for wrong in strange:
        with pytest.raises(ValueError, match="sent"):
            AGGREGATORS[name]().begin(LIKE, LAYERS).add(
                replace(only, tensors={**only.tensors, **wrong})
            )


@each
def test_what_it_says_of_itself_is_true(name: str) -> None:
    aggregator = AGGREGATORS[name]()
    found = reduce(aggregator, clients())
    assert bool(found.folds) <= aggregator.folds
    assert found.folds.keys() <= {layer.layer for layer in LAYERS}
    assert aggregator.reads in ("change", "state")
    if aggregator.restarts:
        assert aggregator.folds
        assert all("lora" not in n for n in found.tensors)
    if aggregator.reads == "change":
        assert not aggregator.folds  # a change of factors is no change of their product


@each
def test_too_few_clients_are_refused(name: str) -> None:
    aggregator = AGGREGATORS[name]()
    least = aggregator.min_clients
    reduce(aggregator, clients(least))
    if least > 1:
        with pytest.raises(UserError, match=f"needs {least} clients"):
            reduce(aggregator, clients(least - 1))


@each
def test_folds_are_of_low_rank(name: str) -> None:
    aggregator = AGGREGATORS[name]()
    if not aggregator.folds:
        return
    few, many = reduce(aggregator, clients(2)), reduce(aggregator, clients())
    for layer in LAYERS:
        assert few.folds[layer.layer].left.shape[1] <= 2 * RANK
        assert many.folds[layer.layer].left.shape[1] <= min(WIDTH, 20)  # seven times three is more
