"""Soft labels in few bytes: what each codec loses, against formulas written out."""

from __future__ import annotations

import itertools
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from trillium.component import resolve
from trillium.frameworks.kd.distillation import distillation_loss
from trillium.wire.codecs import Codec
from trillium.wire.codecs.rows import RowCodec
from trillium.wire.codecs.top_classes import TopClasses
from trillium.wire.soft_labels import SoftLabels, Writer

T = 2.0


def rows(num_rows: int, num_classes: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(num_rows, num_classes, generator=draw, dtype=torch.float64)
    return logits.log_softmax(-1)


def coded(log_probs: Tensor, name: str, key: int = 0, **options: Any) -> SoftLabels:
    codec = cast(RowCodec, resolve(Codec, {"name": name, **options}))
    writer = Writer(codec, len(log_probs), log_probs.shape[1], key)
    writer.add(log_probs)
    return writer.done()


def decoded(log_probs: Tensor, name: str, **options: Any) -> Tensor:
    return coded(log_probs, name, **options).take(slice(None)).double()


BYTES = [
    ("top_classes", {"k": 4}, 77, 9),  # 4 classes, 4 probabilities, 1 tail
    ("top_classes", {"k": 8}, 77, 17),
    ("top_classes", {"k": 16}, 50_257, 49),  # two bytes for a class
    ("top_classes", {"k": 16}, 151_936, 65),  # three
    ("top_classes", {"k": 16, "values": "float16"}, 50_257, 66),
    ("top_classes", {"k": 100}, 77, 154),  # all classes, no tail
    ("votes", {}, 77, 1),
    ("votes", {}, 50_257, 2),
    ("sampled_classes", {"draws": 12}, 50_257, 24),
    ("log_probabilities", {}, 77, 77),
    ("log_probabilities", {"values": "float16"}, 77, 154),
]


@pytest.mark.parametrize(("name", "options", "num_classes", "length"), BYTES, ids=str)
def test_a_row_weighs_what_it_is_said_to(
    name: str, options: dict[str, Any], num_classes: int, length: int
) -> None:
    assert coded(rows(3, num_classes), name, **options).records.nbytes == 3 * length


@pytest.mark.parametrize(("budget", "k"), [(20 * 9, 4), (20 * 9 - 1, 3), (20 * 11, 5), (1, 1)])
def test_a_budget_gives_the_largest_k_that_fits(budget: int, k: int) -> None:
    labels = coded(rows(20, 77), "top_classes", k=50, max_bytes=budget)
    assert labels.records.nbytes == 20 * (2 * k + 1)
    link = cast(TopClasses, resolve(Codec, {"name": "top_classes", "k": 50, "seconds": 0.5}))
    assert link.fit(16 * budget) == link.model_copy(update={"max_bytes": budget})
    assert link.fit(None) == link


def test_top_classes_are_the_largest_and_the_tail_is_the_rest() -> None:
    log_probs = rows(50, 30)
    labels = coded(log_probs, "top_classes", k=5, values="float32")
    found, named = labels.take(slice(None)).double(), labels.named(slice(None))
    assert named is not None
    for row, wanted, is_named in zip(found.exp(), log_probs.exp(), named, strict=True):
        top = sorted(range(30), key=lambda c: -float(wanted[c]))[:5]
        assert is_named.nonzero()[:, 0].tolist() == sorted(top)
        for c in top:
            assert float(row[c]) == pytest.approx(float(wanted[c]), rel=1e-5)
        rest = [c for c in range(30) if c not in top]
        assert float(row[rest].sum()) == pytest.approx(float(wanted[rest].sum()), rel=1e-5)
        assert float(row[rest].max()) == pytest.approx(float(row[rest].min()), rel=1e-5)


def test_all_classes_are_the_whole_distribution() -> None:
    log_probs = rows(50, 30)
    labels = coded(log_probs, "top_classes", k=30, values="float32")
    assert labels.named(slice(None)) is None
    assert torch.allclose(labels.take(slice(None)).double(), log_probs, atol=1e-5)


def test_one_byte_is_finest_where_probability_is() -> None:
    exact = torch.tensor([0.95, 0.5, 0.1, 1e-2, 1e-4, 1e-8], dtype=torch.float64).log()[:, None]
    found = torch.cat([exact, (1 - exact.exp()).log()], dim=1)
    error = (decoded(found, "log_probabilities").exp() / found.exp() - 1).abs()[:, 0]
    assert torch.all(error < torch.tensor([0.004, 0.02, 0.03, 0.05, 0.07, 0.1]))
    half = decoded(found, "log_probabilities", values="float16").exp() / found.exp() - 1
    assert float(half.abs().max()) < 0.01


@pytest.mark.parametrize("k", [1, 3, 10, 29])
def test_a_merged_tail_can_only_lower_the_divergence(k: int) -> None:
    student, teacher = rows(40, 30, 1), rows(40, 30, 2)
    labels = coded(teacher, "top_classes", k=k, values="float32")
    named = labels.named(slice(None))
    full = float(distillation_loss(student, teacher, T))
    merged = float(distillation_loss(student, teacher, T, named))
    assert 0 <= merged <= full * (1 + 1e-12)
    if k == 29:
        assert merged == pytest.approx(full, rel=1e-9)  # a tail of one class is that class
    else:
        assert merged < 0.999 * full
    # Written out: the named classes and one more.
    assert named is not None
    by_hand = 0.0
    for s, t, n in zip((student / T).log_softmax(-1), teacher, named, strict=True):
        for c in n.nonzero()[:, 0]:
            by_hand += float(t[c].exp() * (t[c] - s[c]))
        p, q = float(t[~n].exp().sum()), float(s[~n].exp().sum())
        by_hand += p * float(torch.tensor(p / q).log())
    assert merged == pytest.approx(T**2 * by_hand, rel=1e-6)
    # From the records alone it is the same: the tail is spread, but counts as one.
    from_records = distillation_loss(student, labels.take(slice(None)), T, named)
    assert float(from_records) == pytest.approx(merged, rel=1e-3)


def test_a_tail_that_is_dropped_or_filled_with_zeros_is_another_loss() -> None:
    student, teacher = rows(40, 30, 1, 1.0), rows(40, 30, 2, 1.0)
    labels = coded(teacher, "top_classes", k=5, values="float32")
    named = labels.named(slice(None))
    assert named is not None

    def gradient(target: Tensor, which: Tensor | None) -> Tensor:
        leaf = student.clone().requires_grad_()
        (found,) = torch.autograd.grad(distillation_loss(leaf, target, 1.0, which), [leaf])
        return found

    wanted = gradient(teacher, None)
    renormalised = teacher.masked_fill(~named, -80.0).log_softmax(-1)
    errors = [
        float((gradient(*pair) - wanted).norm() / wanted.norm())
        for pair in ((labels.take(slice(None)), named), (renormalised, None))
    ]
    assert errors[0] < 0.75 * errors[1]


def test_draws_are_right_on_average_and_the_top_is_not() -> None:
    log_probs = rows(6, 12, 3, 1.0)
    student = rows(6, 12, 4)
    mean, gradient = torch.zeros(6, 12).double(), torch.zeros(6, 12).double()
    repeats, draws = 400, 8
    for key in range(repeats):
        found = decoded(log_probs, "sampled_classes", key=key, draws=draws)
        mean += found.exp() / repeats
        leaf = student.clone().requires_grad_()
        loss = distillation_loss(leaf, found, 1.0)
        gradient += torch.autograd.grad(loss, [leaf])[0] / repeats
    p = log_probs.exp()
    deviation = (p * (1 - p) / (draws * repeats)).sqrt()
    assert float(((mean - p) / deviation).abs().max()) < 4.5
    # The gradient of the loss is linear in the teacher, so it is right on average, too.
    wanted = student.softmax(-1) - p
    assert float(((gradient - wanted) / deviation).abs().max()) < 4.5
    top = decoded(log_probs, "top_classes", k=4).exp()
    assert float(((top - p) / deviation).abs().max()) > 4.5


def test_clients_of_a_round_do_not_draw_alike() -> None:
    """Equal keys, other rows: if the noise were shared, errors would not average out."""
    first = rows(200, 12, 3, 0.0)
    second = first + torch.tensor(1e-9)
    drawn = [coded(log_probs, "sampled_classes", draws=1).records for log_probs in (first, second)]
    assert 0 < int((drawn[0] == drawn[1]).sum()) < 50


@pytest.mark.parametrize("temperature", [1.0, T])
def test_softening_what_was_drawn_is_biased(temperature: float) -> None:
    log_probs = rows(1, 4, 5, 1.0)
    p = log_probs.exp()[0]
    mean = torch.zeros(4, dtype=torch.float64)
    draws = 3
    for drawn in itertools.product(range(4), repeat=draws):
        chance = torch.stack([p[c] for c in drawn]).prod()
        shares = torch.bincount(torch.tensor(drawn), minlength=4).double() / draws
        softened = shares ** (1 / temperature)
        mean += chance * softened / softened.sum()
    wanted = (log_probs[0] / temperature).softmax(-1)
    assert torch.allclose(mean, wanted, atol=1e-12) == (temperature == 1.0)
