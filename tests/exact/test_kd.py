"""Distillation = the textbook: gradients by hand, whole rounds written out in plain PyTorch."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from kd_help import T, distil, wanted_rows
from torch import Tensor, nn

from tiny import (
    Recorder,
    digest,
    distance,
    federation,
    perturb,
    plain_model,
    plain_steps,
    public_set,
    round_batches,
    run_rounds,
    trained,
)
from trillium.experiment.run import Experiment
from trillium.frameworks.kd.distillation import Loss, distillation_loss, distillation_objective
from trillium.frameworks.kd.ensembles import Average, Opinions, SizeWeighted
from trillium.rng import generator
from trillium.tasks import IGNORE, Example, Task
from trillium.tasks.batches import collate
from trillium.tasks.causal_lm import CausalLM
from trillium.tasks.classification import Classification
from trillium.training.loop import Objective
from trillium.wire.codecs.rows import FullRows
from trillium.wire.message import Message, decode
from trillium.wire.soft_labels import SoftLabels, Teacher, Writer

ROWS, CLASSES = 5, 7


def logits(seed: int, rows: int = ROWS) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(rows, CLASSES, generator=draw, dtype=torch.float64) * 2


def gradient(student: Tensor, teacher: Tensor, temperature: float = T) -> Tensor:
    leaf = student.clone().requires_grad_()
    (found,) = torch.autograd.grad(distillation_loss(leaf, teacher.log(), temperature), [leaf])
    return found


def labels(log_probs: Tensor) -> SoftLabels:
    writer = Writer(FullRows(), len(log_probs), log_probs.shape[1], key=0)
    writer.add(log_probs)
    return writer.done()


def objective(
    task: Task, examples: list[Example], teacher: Tensor, weight: float = 1.0, ce: bool = False
) -> Objective:
    found = Teacher(labels(teacher.log()), torch.ones(len(teacher), dtype=torch.bool))
    return distillation_objective(task, examples, found, Loss(T, weight, ce))


def test_loss_and_gradient_are_those_of_hinton() -> None:
    student, teacher = logits(0), (logits(1) / T).softmax(-1)
    by_hand = 0.0
    for row in range(ROWS):
        exps = [math.exp(float(value) / T) for value in student[row]]
        for column in range(CLASSES):
            p = float(teacher[row, column])
            by_hand += T**2 * p * (math.log(p) - math.log(exps[column] / sum(exps)))
    assert float(distillation_loss(student, teacher.log(), T)) == pytest.approx(by_hand, rel=1e-12)
    expected = T * ((student / T).softmax(-1) - teacher)
    assert torch.allclose(gradient(student, teacher), expected, atol=1e-15, rtol=0)
    without_factor = expected / T**2
    assert not torch.allclose(gradient(student, teacher), without_factor, atol=1e-3)
    # The divergence the other way round, a common slip, has another gradient.
    leaf = student.clone().requires_grad_()
    q = (leaf / T).softmax(-1)
    reverse = (T**2 * q * (q.log() - teacher.log())).sum()
    assert not torch.allclose(torch.autograd.grad(reverse, [leaf])[0], expected, atol=1e-3)


def test_the_factor_keeps_gradients_comparable_at_high_temperature() -> None:
    student, teacher = logits(0), logits(1)
    centred = [x - x.mean(-1, keepdim=True) for x in (student, teacher)]
    hot = gradient(student, (teacher / 1e4).softmax(-1), 1e4)
    assert torch.allclose(hot, (centred[0] - centred[1]) / CLASSES, atol=1e-3)


def average(weights: tuple[float, ...], teachers: list[Tensor], how: Average) -> Tensor:
    log_probs = torch.stack(teachers).log_softmax(-1)
    present = torch.ones(log_probs.shape[:2], dtype=torch.bool)
    sizes = torch.tensor(weights, dtype=torch.float64)
    opinions = Opinions(log_probs, present, sizes, None, torch.zeros(ROWS, dtype=torch.int64))
    return SizeWeighted().combine(opinions, T, how).exp()


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (3.0, 1.0, 0.5)])
def test_many_teachers_are_their_mean(weights: tuple[float, ...]) -> None:
    """The gradient of the mean teacher is the mean of the teachers' gradients."""
    student, total = logits(0), sum(weights)
    teachers = [logits(seed) for seed in (1, 2, 3)]
    mean = average(weights, teachers, "probabilities")
    each = [gradient(student, (teacher / T).softmax(-1)) for teacher in teachers]
    expected = sum(w / total * g for w, g in zip(weights, each, strict=True))
    assert isinstance(expected, Tensor)
    assert torch.allclose(gradient(student, mean), expected, atol=1e-14)
    by_logits = average(weights, teachers, "logits")
    pooled = sum(w / total * t for w, t in zip(weights, teachers, strict=True))
    assert isinstance(pooled, Tensor)
    assert torch.allclose(by_logits, (pooled / T).softmax(-1), atol=1e-14)
    assert not torch.allclose(by_logits, mean, atol=1e-3)


def test_the_student_learns_and_the_teacher_does_not() -> None:
    student, source = logits(0).requires_grad_(), logits(1).requires_grad_()
    teacher = (source / T).softmax(-1)
    distillation_loss(student, teacher.log(), T).backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None
    assert float(student.grad.abs().min()) > 0
    assert source.grad is None


class Fixed(nn.Module):
    """A model that answers a batch with logits that are parameters."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(4)
        self.table = nn.Parameter(torch.randn(shape, generator=draw, dtype=torch.float64))

    def forward(self, **inputs: Tensor) -> Any:
        return SimpleNamespace(logits=self.table)


def public_text() -> list[Example]:
    ids = [torch.tensor([2, 5, 6, 4, 3]), torch.tensor([2, 4, 5])]
    labels = [torch.tensor([IGNORE, IGNORE, 6, 4, 3]), torch.tensor([IGNORE, 4, 5])]
    return [Example(i, *pair) for i, pair in enumerate(zip(ids, labels, strict=True))]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_language_models_are_distilled_where_the_next_token_is_a_response(
    order: tuple[int, int],
) -> None:
    examples = public_text()
    teacher = (logits(1) / T).softmax(-1)  # 3 + 2 predictions
    batch = collate([examples[i] for i in order], 0, torch.device("cpu"))
    model = Fixed((2, batch.input_ids.shape[1], CLASSES))
    loss, count = objective(CausalLM(), examples, teacher)(model, batch)
    # Written out: position t of the logits speaks about token t + 1.
    places = {0: [1, 2, 3], 1: [0, 1]}
    rows = {0: teacher[:3], 1: teacher[3:]}
    expected = torch.zeros((), dtype=torch.float64)
    unshifted = torch.zeros((), dtype=torch.float64)
    for row, index in enumerate(order):
        for place, wanted in zip(places[index], rows[index], strict=True):
            for shift in (0, 1):
                log_p = (model.table[row, place + shift] / T).log_softmax(-1)
                term = T**2 * (wanted * (wanted.log() - log_p)).sum().detach()
                expected, unshifted = (
                    (expected + term, unshifted) if shift == 0 else (expected, unshifted + term)
                )
    assert count == 5
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-6)  # sent as float32
    assert abs(float(expected) - float(unshifted)) > 0.1
    loss.backward()  # type: ignore[no-untyped-call]
    assert model.table.grad is not None
    touched = model.table.grad.abs().sum(-1) > 0
    for row, index in enumerate(order):
        assert touched[row].nonzero().flatten().tolist() == places[index]


@pytest.mark.parametrize("use", [False, True])
def test_cross_entropy_is_added_only_with_public_labels(use: bool) -> None:
    examples = [Example(i, torch.tensor([2, 5]), torch.tensor(i)) for i in range(ROWS)]
    teacher = (logits(1) / T).softmax(-1)
    batch, model = collate(examples, 0, torch.device("cpu")), Fixed((ROWS, CLASSES))
    loss, _ = objective(Classification(), examples, teacher, 0.5, use)(model, batch)
    expected = 0.5 * distillation_loss(model.table, teacher.log(), T)
    if use:
        expected = expected + nn.functional.cross_entropy(
            model.table, torch.arange(ROWS), reduction="sum"
        )
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)


@pytest.mark.parametrize("use", [False, True])
def test_public_labels_cannot_be_seen_unless_they_may(hub: Path, use: bool) -> None:
    def run(shift: int) -> tuple[list[str], list[bytes], Experiment]:
        fed = federation(hub, "framework=kd", f"framework.public_labels={str(use).lower()}")
        fed.server.public = [
            Example(e.index, e.input_ids, (e.labels + shift) % 3) for e in fed.server.public
        ]
        rows = fed.server.public_rows
        labels = [(label + shift) % 3 for label in rows["label"]]
        fed.server.public_rows = Dataset.from_dict({"text": list(rows["text"]), "label": labels})
        log = Recorder(fed)
        run_rounds(fed, 2)
        return [digest(reply) for _, _, reply in log.log], [ask for _, ask, _ in log.log], fed

    first, second = run(0), run(1)
    same = not use
    assert (first[0] == second[0]) == same
    assert (first[1] == second[1]) == same
    assert (distance(first[2].server.state, second[2].server.state) == 0.0) == same


TEXTBOOK = [("bert", "classification"), ("gpt2", "classification"), ("gpt2", "causal_lm")]


def one_client(hub: Path, model: str, task: str) -> Experiment:
    words = ("framework=kd", "framework.direction=server", f"framework.temperature={T}")
    more = ("data.num_clients=1", "training.max_grad_norm=0.5")
    return perturb(federation(hub, *words, *more, model=model, task=task))


@pytest.mark.parametrize(("model", "task"), TEXTBOOK)
def test_one_client_is_distillation_as_in_the_textbook(hub: Path, model: str, task: str) -> None:
    fed = one_client(hub, model, task)
    seed, client, server = fed.config.seed, plain_model(fed), plain_model(fed)
    run_rounds(fed, 2)
    public = public_set(fed)
    for number in (1, 2):
        optimizer = torch.optim.AdamW(trained(client).values(), lr=0.01, weight_decay=0.0)
        plain_steps(client.train(), round_batches(fed, number), optimizer, 0.5)
        teacher = (wanted_rows(client, public).double() / T).softmax(-1).float()
        distil(server, public, teacher, generator(seed, "distil", "server", number), 8)
    assert distance(fed.clients[0].store["tensors"], trained(client)) < 1e-10
    assert distance(fed.server.state, trained(server)) < 1e-6  # logits cross as float32
    assert distance(trained(server), fed.model.initial) > 1e-2


@pytest.mark.parametrize(("model", "task"), TEXTBOOK)
def test_a_client_learns_from_any_teacher_as_in_the_textbook(
    hub: Path, model: str, task: str
) -> None:
    """A teacher of its own: one that the client has made would leave it nothing to learn."""
    fed = one_client(hub, model, task)
    run_rounds(fed, 1)
    (client,), public = fed.clients, public_set(fed)
    before, plain = client.store["tensors"], plain_model(fed)
    plain.load_state_dict(before, strict=False)
    rows = wanted_rows(plain, public)
    draw = torch.Generator().manual_seed(1)
    teacher = torch.randn(rows.shape, generator=draw).softmax(-1)
    ask = {client.name: Message("learn", {"logits/teacher": teacher.log()})}
    assert [name for name, _ in fed.fleet.ask(ask, lambda reply: None)] == [client.name]
    # What crosses are float32 logarithms, normalised again where they arrive.
    crossed = teacher.log().log_softmax(-1).double().exp()
    distil(plain, public, crossed, generator(fed.config.seed, "distil", client.name, 1), 8)
    assert distance(client.store["tensors"], trained(plain)) < 1e-10
    assert distance(client.store["tensors"], before) > 1e-3


@pytest.mark.parametrize("direction", ["server", "client", "both"])
def test_each_direction_teaches_whom_it_names(hub: Path, direction: str) -> None:
    fed = federation(hub, "framework=kd", f"framework.direction={direction}")
    log = Recorder(fed)
    run_rounds(fed, 1)
    verbs = {decode(reply).verb for _, _, reply in log.log}
    assert ("learn" in verbs) == (direction != "server")
    moved = distance(fed.server.state, fed.model.initial) > 0
    assert moved == (direction != "client")
    crossed = [decode(part) for _, *parts in log.log for part in parts]
    assert not any(message.group("parameters") for message in crossed)
