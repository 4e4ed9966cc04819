"""Students whose tokens are finer, or others, than those of the teacher's labels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trillium.frameworks.kd.dialects import CLASSES, NUM_CLASSES, read_classes
from trillium.frameworks.kd.distillation import distillation_loss
from trillium.wire.kinds import MessageError
from trillium.wire.message import Message, scalar

NUM_TEACHER, NUM_STUDENT, T = 6, 9, 1.5


def drawn(rows: int, size: int, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(rows, size, generator=draw, dtype=torch.float64)


def loss_and_gradient(student: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    leaf = student.clone().requires_grad_()
    loss = distillation_loss(leaf, *rest)
    return loss.detach(), torch.autograd.grad(loss, [leaf])[0]


def by_matrix(student: Tensor, teacher: Tensor, index: list[int], named: Tensor | None) -> Tensor:
    """Return the loss as sums of probabilities: of members, then of all classes without a name."""
    total = torch.zeros((), dtype=torch.float64)
    shared = sorted({place for place in index if place >= 0})
    for row in range(len(student)):
        own = (student[row] / T).softmax(-1)
        sums = [sum(own[i] for i, c in enumerate(index) if c == place) for place in shared]
        p = teacher[row, shared].exp() / teacher[row, shared].exp().sum()
        q = torch.stack([torch.as_tensor(value) for value in sums])
        q = q / q.sum()
        keep = torch.ones(len(shared), dtype=torch.bool) if named is None else named[row, shared]
        pairs = [(p[i], q[i]) for i in range(len(shared)) if keep[i]]
        if not bool(keep.all()):
            pairs.append((p[~keep].sum(), q[~keep].sum()))
        total = total + T**2 * sum(a * (a / b).log() for a, b in pairs)
    return total


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(-1, NUM_TEACHER - 1), min_size=NUM_STUDENT, max_size=NUM_STUDENT),
    st.booleans(),
    st.integers(0, 99),
)
def test_the_loss_is_that_of_sums_over_members(index: list[int], top: bool, seed: int) -> None:
    if max(index) < 0:
        index[0] = 2
    student = drawn(3, NUM_STUDENT, seed)
    teacher = drawn(3, NUM_TEACHER, seed + 1).log_softmax(-1)
    named = teacher >= teacher.topk(3).values[:, -1:] if top else None
    leaf = student.clone().requires_grad_()
    wanted = by_matrix(leaf, teacher, index, named)
    (slope,) = torch.autograd.grad(wanted, [leaf])
    found, gradient = loss_and_gradient(student, teacher, T, named, torch.tensor(index))
    torch.testing.assert_close(found, wanted.detach(), atol=1e-10, rtol=1e-9)
    torch.testing.assert_close(gradient, slope, atol=1e-10, rtol=1e-9)


def test_the_same_classes_in_another_order_are_the_same_loss() -> None:
    order = torch.randperm(NUM_TEACHER, generator=torch.Generator().manual_seed(0))
    student, teacher = drawn(3, NUM_TEACHER, 0), drawn(3, NUM_TEACHER, 1).log_softmax(-1)
    plain, _ = loss_and_gradient(student, teacher, T)
    moved, _ = loss_and_gradient(student[:, order], teacher, T, None, order)
    torch.testing.assert_close(moved, plain)
    wrong, _ = loss_and_gradient(student[:, order], teacher, T)
    assert abs(float(wrong - plain)) > 0.1


def test_a_coarse_teacher_does_not_say_which_of_the_finer_tokens_is_next() -> None:
    # The teacher knows "t" and "a"; the student also "the" and "to", which begin with "t".
    teacher = torch.tensor([[0.7, 0.3]], dtype=torch.float64).log()
    classes = torch.tensor([0, 1, 0, 0])
    agrees = torch.tensor([[0.1, 0.3, 0.5, 0.1]], dtype=torch.float64).log()
    loss, gradient = loss_and_gradient(agrees, teacher, 1.0, None, classes)
    assert float(loss) == pytest.approx(0, abs=1e-12)
    assert float(gradient.abs().max()) < 1e-12
    # In the student's tokens, where "t" is only itself, the same teacher teaches to write "t".
    copied = torch.tensor([[0.7, 0.3, 1e-9, 1e-9]], dtype=torch.float64).log()
    _, pulled = loss_and_gradient(agrees, copied, 1.0)
    assert pulled[0, 0] < -0.5 < 0.4 < pulled[0, 2]


def test_tokens_of_no_class_are_left_alone() -> None:
    student, teacher = drawn(2, 4, 0), drawn(2, 3, 1).log_softmax(-1)
    _, gradient = loss_and_gradient(student, teacher, T, None, torch.tensor([0, -1, 2, 2]))
    assert gradient[:, 1].abs().max() < 1e-12
    assert gradient[:, 0].abs().min() > 1e-3


def told(index: list[int], count: float, dtype: torch.dtype = torch.int32) -> Message:
    tensors = {CLASSES: torch.tensor(index, dtype=dtype), NUM_CLASSES: scalar(count)}
    return Message("receive_public", tensors)


def test_who_is_told_no_classes_has_the_servers() -> None:
    assert read_classes(Message("receive_public"), 5) == (None, 5)
    classes, count = read_classes(told([2, -1, 0], 3), 3)
    assert classes is not None
    assert (classes.tolist(), classes.dtype, count) == ([2, -1, 0], torch.int64, 3)


@pytest.mark.parametrize(
    "message",
    [
        told([0, 3, 1], 3),
        told([0, -2, 1], 3),
        told([-1, -1, -1], 3),
        told([0, 1], 3),
        told([0, 1, 2], 3, torch.int64),
        told([0, 1, 2], 3.5),
        told([0, 1, 2], 0),
        told([0, 1, 2], 2.0**40),
        Message("receive_public", {CLASSES: torch.zeros(3, dtype=torch.int32)}),
    ],
    ids=["above", "below", "none", "few", "dtype", "part", "zero", "many", "no count"],
)
def test_a_map_that_is_none_is_refused(message: Message) -> None:
    with pytest.raises(MessageError):
        read_classes(message, 3)
