"""Distillation of hidden states = the textbook, on maps that all sides hold without sending them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hidden_help import (
    LAYERS,
    PROJECTED,
    SIZE,
    WEIGHT,
    framework_of,
    kd,
    labels_of,
    noise,
    probe_of,
    rows_by_hand,
    setting,
    states,
)
from kd_help import T, wanted_rows
from torch import Tensor, nn

from tiny import (
    distance,
    perturb,
    plain_batch,
    plain_model,
    plain_steps,
    public_set,
    round_batches,
    run_rounds,
    trained,
)
from trillium.experiment.run import Experiment
from trillium.frameworks.kd import distillation
from trillium.frameworks.kd.distillation import Loss, distillation_objective, predict
from trillium.frameworks.kd.hiddens.lora import LoraHidden
from trillium.frameworks.kd.hiddens.probe import Probe, before_head_layer
from trillium.frameworks.kd.hiddens.projected import orthonormal
from trillium.rng import generator
from trillium.tasks import IGNORE, Example
from trillium.tasks.batches import collate, epoch
from trillium.wire import soft_labels
from trillium.wire.soft_labels import Teacher, Writer

FORMS = [
    ("bert", "classification"),
    ("gpt2", "classification"),
    ("llama", "classification"),
    ("gpt2", "causal_lm"),
    ("llama", "causal_lm"),
]
KINDS = ["projected", "lora"]
each_form = pytest.mark.parametrize(("model", "task"), FORMS)
each_kind = pytest.mark.parametrize("kind", KINDS)


# The map


@pytest.mark.parametrize(("width", "size"), [(12, 5), (12, 12), (384, 32), (7, 1)])
def test_the_map_is_orthonormal(width: int, size: int) -> None:
    matrix = orthonormal(width, size, generator(0, "hidden"))
    assert matrix.shape == (width, size)
    assert torch.allclose(matrix.T @ matrix, torch.eye(size, dtype=torch.float64), atol=1e-12)
    drawn = torch.randn(width, size, generator=generator(0, "hidden"), dtype=torch.float64)
    # Gram and Schmidt's of what was drawn: a column has no part of later ones, and leans to its own.
    upper = matrix.T @ drawn
    assert torch.allclose(upper.tril(-1), torch.zeros_like(upper), atol=1e-12)
    assert bool((upper.diagonal() > 0).all())


@each_kind
def test_all_sides_hold_the_same_map_and_another_seed_another(hub: Path, kind: str) -> None:
    def maps(*words: str) -> list[Tensor]:
        fed = kd(hub, setting(kind, "gpt2"), *words)
        return [probe_of(side, fed).matrix for side in (fed.server, *fed.clients)]

    first, again, other = maps(), maps(), maps("seed=1")
    assert all(torch.equal(matrix, first[0]) for matrix in first + again)
    assert not torch.allclose(first[0], other[0], atol=1e-2)


def test_the_map_of_lora_is_the_one_before_training(hub: Path) -> None:
    fed = kd(hub, setting("lora", "gpt2"))
    run_rounds(fed, 1)
    name = f"base_model.model.transformer.{LAYERS['gpt2']}.lora_A.default.weight"
    assert torch.equal(probe_of(fed.clients[0], fed).matrix.T, fed.model.initial[name])
    assert distance({name: fed.clients[0].store["tensors"][name]}, {name: fed.model.initial[name]})


def test_the_last_adapted_layer_is_taken_where_none_is_named(hub: Path) -> None:
    for model, last in (("gpt2", "h.2.mlp.c_proj"), ("bert", "layer.2.intermediate.dense")):
        fed = kd(hub, model=model)
        left_out, named = LoraHidden(), LoraHidden(layer=last)
        public = public_set(fed)
        found = [states(fed, public, hidden.probe(fed.server)) for hidden in (left_out, named)]
        assert torch.equal(*found)
        other = states(fed, public, LoraHidden(layer=LAYERS[model]).probe(fed.server))
        assert not torch.allclose(found[0], other, atol=1e-2)


# What is read


@each_kind
@each_form
def test_rows_are_the_states_behind_the_predictions_that_count(
    hub: Path, model: str, task: str, kind: str
) -> None:
    fed = perturb(kd(hub, setting(kind, model), model=model, task=task))
    public = public_set(fed)
    probe, plain = probe_of(fed.server, fed), plain_model(fed).eval()
    found = states(fed, public, probe)
    with torch.no_grad():
        expected = rows_by_hand(plain, public, kind, probe.matrix)
    assert found.dtype == torch.float32
    assert found.shape == (sum(map(fed.server.task.num_targets, public)), probe.size)
    assert torch.allclose(found.double(), expected, atol=1e-5)
    assert not torch.allclose(found.double(), expected.flip(0), atol=1e-2)


@each_form
def test_reading_changes_no_prediction(hub: Path, model: str, task: str) -> None:
    fed = perturb(kd(hub, PROJECTED, model=model, task=task))
    public, side = public_set(fed), fed.server
    shape = sum(map(side.task.num_targets, public)), side.model.num_classes

    def labels(probe: Probe | None) -> tuple[Tensor, float]:
        writer = Writer(fed.config.wire.row_codec("up"), *shape, key=0)
        side.meter.reset()
        loop = side.loop(f"predict {probe is None}", side.state)
        found, _ = predict(loop, side.task, public, writer, probe)
        return found.records, side.meter.read().flops

    (plain, flops), (read, more) = labels(None), labels(probe_of(side, fed))
    assert torch.allclose(plain, read, atol=1e-6)
    # The same one pass: the map is all that is added, and a head on tokens that do not count left out.
    length = max(len(e.input_ids) for e in public)
    spared = 2 * 12 * 3 * 12 * (-(-length // 8) * 8 - 1)  # features, classes, texts, tokens
    decoder = task == "classification" and model != "bert"
    assert more - flops == 2 * shape[0] * 12 * SIZE - (spared if decoder else 0)


def test_the_pooled_features_are_the_models_own(hub: Path) -> None:
    """GPT-2 applies its head to all tokens and picks one; a row must be of that one."""
    fed = kd(hub, model="gpt2")
    batch = collate(public_set(fed)[:4], 0, torch.device("cpu"))
    module: Any = fed.model.mount(fed.server.state)
    logits = module(**batch.inputs).logits
    with before_head_layer(module) as seen:
        again = module(**batch.inputs).logits
    (features,) = seen
    assert torch.allclose(again, logits, atol=1e-12)
    head = module.get_base_model().score.modules_to_save["default"]
    assert torch.allclose(head(features), logits, atol=1e-12)
    assert torch.equal(module(**batch.inputs).logits, logits)  # nothing stays behind


def test_without_logits_all_at_once_the_same_is_read_and_learnt(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed = perturb(kd(hub, PROJECTED, model="llama", task="causal_lm"))
    public, probe = public_set(fed), probe_of(fed.server, fed)
    found = [states(fed, public, probe), *learnt(fed, public, probe, apart=False)]
    monkeypatch.setattr(distillation, "WIDE", 1)
    monkeypatch.setattr(soft_labels, "CHUNK", 200)
    in_parts = [states(fed, public, probe), *learnt(fed, public, probe, apart=True)]
    for one, other in zip(found, in_parts, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-5)


# What is learnt


def learnt(
    fed: Experiment, public: list[Example], probe: Probe, *, apart: bool = False
) -> list[Tensor]:
    """The loss of a batch of all public examples, and its gradients, for a teacher of noise."""
    rows, side = sum(map(fed.server.task.num_targets, public)), fed.server
    labels = labels_of(noise(rows, side.model.num_classes).log_softmax(-1), fed)
    teacher = replace(Teacher.of_all(labels), hidden=noise(rows, probe.size, 2))
    objective = distillation_objective(side.task, public, teacher, Loss(T, 0.5), probe, apart=apart)
    state = fed.model.state()
    module = fed.model.mount(state).train()
    batch = collate(public[::-1], 0, torch.device("cpu"))
    loss, _ = objective(module, batch)
    gradients = torch.autograd.grad(loss, list(state.values()), allow_unused=True)
    assert teacher.hidden is not None
    assert not teacher.hidden.requires_grad
    pairs = zip(state.values(), gradients, strict=True)
    given = [torch.zeros_like(p) if g is None else g for p, g in pairs]
    return [loss.detach(), *given]


def learnt_by_hand(
    fed: Experiment, public: list[Example], kind: str, matrix: Tensor, factor: float = 1.0
) -> list[Tensor]:
    plain = plain_model(fed).train()
    rows = sum(map(fed.server.task.num_targets, public))
    p = noise(rows, fed.model.num_classes).log_softmax(-1).log_softmax(-1).double().exp()
    hidden = noise(rows, matrix.shape[1], 2).double()
    logits = []
    for example in public:
        inputs, labels = plain_batch([example])
        answer: Any = plain(**inputs).logits
        logits.append(answer[0, :-1][labels[0, 1:] != IGNORE] if labels.dim() == 2 else answer)
    log_q = (torch.cat(logits) / T).log_softmax(-1)
    loss = 0.5 * T**2 * (p * (p.log() - log_q)).sum()
    own = rows_by_hand(plain, public, kind, matrix)
    for student, wanted in zip(own, hidden, strict=True):
        loss = loss + factor * WEIGHT * sum((student - wanted) ** 2) / len(wanted)
    gradients = torch.autograd.grad(loss, list(trained(plain).values()), allow_unused=True)
    pairs = zip(trained(plain).values(), gradients, strict=True)
    return [loss.detach(), *(torch.zeros_like(q) if g is None else g for q, g in pairs)]


@each_kind
@each_form
def test_loss_and_gradient_are_those_of_the_textbook(
    hub: Path, model: str, task: str, kind: str
) -> None:
    fed = perturb(kd(hub, setting(kind, model), model=model, task=task))
    public, probe = public_set(fed), probe_of(fed.server, fed)
    found = learnt(fed, public, probe)
    expected = learnt_by_hand(fed, public, kind, probe.matrix)
    scale = max(float(g.abs().max()) for g in expected[1:])
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5 * scale)
    # Summed instead of averaged over the entries of a row; another map; no such term at all.
    wrong = [
        learnt_by_hand(fed, public, kind, probe.matrix, probe.size),
        learnt_by_hand(fed, public, kind, orthonormal(12, probe.size, generator(1, "hidden"))),
        learnt_by_hand(fed, public, kind, probe.matrix, 0.0),
    ]
    for other_way in wrong:
        assert any(
            not torch.allclose(one, other, rtol=1e-2, atol=1e-2 * scale)
            for one, other in zip(found[1:], other_way[1:], strict=True)
        )


def hidden_steps(
    module: nn.Module, public: list[Example], labels: Tensor, hidden: Tensor, matrix: Tensor,
    draw: torch.Generator,
) -> None:  # fmt: skip
    """One epoch of distillation with hidden states, written out, for classification."""
    places = {example.index: place for place, example in enumerate(public)}

    def loss(model: nn.Module, chunk: list[Example]) -> Tensor:
        rows = [places[example.index] for example in chunk]
        inputs, _ = plain_batch(chunk)
        answer: Tensor = model(**inputs).logits
        p = labels[rows].double()
        kl = T**2 * (p * (p.log() - (answer / T).log_softmax(-1))).sum(-1)
        own = rows_by_hand(model, chunk, "projected", matrix)
        found: Tensor = (kl + WEIGHT * (own - hidden[rows]).square().mean(-1)).mean()
        return found

    chunks: Iterator[list[Example]] = epoch(public, 8, draw)
    optimizer = torch.optim.AdamW(trained(module).values(), lr=0.01, weight_decay=0.0)
    plain_steps(module.train(), chunks, optimizer, 0.5, loss)


@pytest.mark.parametrize("model", ["bert", "gpt2"])
def test_one_client_is_distillation_as_in_the_textbook(hub: Path, model: str) -> None:
    words = ("framework.direction=server", "data.num_clients=1", "training.max_grad_norm=0.5")
    fed = perturb(kd(hub, PROJECTED, *words, model=model))
    seed, client, server = fed.config.seed, plain_model(fed), plain_model(fed)
    astray = plain_model(fed)
    run_rounds(fed, 1)
    public, matrix = public_set(fed), probe_of(fed.server, fed).matrix
    optimizer = torch.optim.AdamW(trained(client).values(), lr=0.01, weight_decay=0.0)
    plain_steps(client.train(), round_batches(fed, 1), optimizer, 0.5)
    labels = (wanted_rows(client, public).double() / T).softmax(-1).float()
    other = orthonormal(12, SIZE, generator(seed + 1, "hidden"))
    for student, used in ((server, matrix), (astray, other)):
        with torch.no_grad():
            hidden = rows_by_hand(client.eval(), public, "projected", used)
        draw = generator(seed, "distil", "server", 1)
        hidden_steps(student, public, labels, hidden, matrix, draw)
    assert distance(fed.server.state, trained(server)) < 1e-6  # what crosses is float32
    # With another map on the client's side than on the server's, it is another student.
    assert distance(fed.server.state, trained(astray)) > 1e-3


@pytest.mark.parametrize("task", ["classification", "causal_lm"])
def test_with_hardly_any_weight_nothing_changes_but_the_bytes(hub: Path, task: str) -> None:
    def run(*words: str) -> Experiment:
        fed = kd(hub, *words, task=task)
        run_rounds(fed, 2)
        return fed

    without, hardly, fully = run(), run(setting("projected", "gpt2", 1e-30)), run(PROJECTED)
    everyone = [
        (f.server.state, *(c.store["tensors"] for c in f.clients)) for f in (without, hardly)
    ]
    for one, other in zip(*everyone, strict=True):
        assert distance(one, other) < 1e-9
    assert distance(without.server.state, fully.server.state) > 1e-4


def test_a_student_comes_nearer_to_the_teachers_states(hub: Path) -> None:
    fed = kd(hub, setting("projected", "gpt2", 50.0), task="causal_lm")
    public, probe = public_set(fed), probe_of(fed.server, fed)
    teacher = states(fed, public, probe)
    lesson = Teacher.of_all(
        labels_of(noise(len(teacher), fed.model.num_classes).log_softmax(-1), fed)
    )
    client, draw = fed.clients[0], torch.Generator().manual_seed(3)

    def apart(tensors: dict[str, Tensor]) -> float:
        fed.server.state = fed.model.state(tensors)
        return float((states(fed, public, probe) - teacher).square().mean())

    before = {n: t + 0.2 * torch.randn(t.shape, generator=draw) for n, t in client.initial.items()}
    state = fed.model.state(before)
    for number in range(1, 9):
        client.round = number
        framework_of(fed)._distil(client, state, public, replace(lesson, hidden=teacher))
    after = {name: parameter.detach() for name, parameter in state.items()}
    assert apart(after) < 0.5 * apart(before)
