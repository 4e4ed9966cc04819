"""Tasks are those of Transformers: its losses in a plain loop, its pipelines, distillation by hand."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import pipeline

from tiny import (
    EXACT,
    distance,
    experiment_config,
    federation,
    perturb,
    plain_batch,
    plain_model,
    plain_steps,
    public_set,
    round_batches,
    run_rounds,
    trained,
)
from trillium.errors import UserError
from trillium.experiment.folder import RunFolder
from trillium.experiment.prediction import predict_run
from trillium.experiment.run import build
from trillium.experiment.trained import export_run
from trillium.rng import generator
from trillium.tasks import IGNORE, Example
from trillium.tasks.batches import epoch
from trillium.tasks.writing import Writing

ALONE = (
    "data.num_clients=1",
    "training.optimizer={name: sgd, lr: 0.1}",
    "training.max_grad_norm=1.0",
    "data.public_size=0",
)
WAYS = {
    "fedllm": ("framework=fedllm",),
    "split": ("framework={name: split, cut: 1}",),
    "split in turns": ("framework={name: split, cut: 1, mode: splitfed_v2}",),
    "u": ("framework={name: split, cut: 1, shape: u}",),
    "micro-batches": ("framework={name: split, cut: 1, shape: u}", "training.micro_batch_size=3"),
}
TASKS = [("bert", "multi_label"), ("gpt2", "multi_label"), ("bert", "regression")]
TASKS += [("bert", "token_classification"), ("llama", "token_classification")]


@pytest.mark.usefixtures("uncounted")
@pytest.mark.parametrize(("model", "task"), TASKS)
@pytest.mark.parametrize("way", WAYS)
def test_one_client_alone_is_a_plain_loop(hub: Path, way: str, model: str, task: str) -> None:
    fed = perturb(federation(hub, *ALONE, *WAYS[way], model=model, task=task))
    plain = plain_model(fed)
    [figures] = run_rounds(fed, 1)
    optimizer = torch.optim.SGD(trained(plain).values(), lr=0.1)
    chunks = round_batches(fed, 1)
    losses = plain_steps(plain, chunks, optimizer, clip=1.0)
    sizes = [sum(fed.config.task.num_targets(e) for e in chunk) for chunk in chunks]
    mean = sum(a * b for a, b in zip(losses, sizes, strict=True)) / sum(sizes)
    assert figures["train_loss"] == pytest.approx(mean, abs=EXACT[model])
    assert distance(fed.server.state, trained(plain)) < EXACT[model]
    assert distance(fed.server.state, fed.model.initial) > 1e-3, "it has learnt"


T = 3.0
KD = (
    "framework={name: kd, direction: server}",
    "data.num_clients=2",
    "data.partition={name: size_skewed, power: 1.0}",
    "training.optimizer={name: sgd, lr: 0.1}",
    "training.max_grad_norm=null",
    "wire={up: [], down: []}",
)


def binary(student: Tensor, teacher: Tensor) -> Tensor:
    """T^2 times the divergence of independent coins; probabilities `teacher`."""
    q = (student / T).sigmoid()
    both = teacher * (teacher / q).log() + (1 - teacher) * ((1 - teacher) / (1 - q)).log()
    return T**2 * both.sum()


def of_tags(student: Tensor, teacher: Tensor) -> Tensor:
    """The same of distributions over tags."""
    q = (student / T).softmax(-1)
    return T**2 * (teacher * (teacher / q).log()).sum()


# What a client says of a public example, what the teacher says, and how far a student is from it.
SOFT: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "multi_label": (lambda z: (z / T).sigmoid(), binary),
    "token_classification": (lambda z: (z / T).softmax(-1), of_tags),
    "regression": (lambda z: z, lambda student, teacher: (student - teacher).square().sum()),
}


def counted(rows: Tensor, example: Example) -> Tensor:
    """Return what counts of the rows of a text: those of labelled tokens, or its only one."""
    if example.labels.dim() == 1:
        return rows[: example.num_tokens][example.labels != IGNORE]
    return rows.reshape(1, -1)


@pytest.mark.usefixtures("uncounted")
@pytest.mark.parametrize("task", SOFT)
def test_distillation_is_the_textbook(hub: Path, task: str) -> None:
    soften, divergence = SOFT[task]
    own = () if task == "regression" else (f"framework.temperature={T}",)
    fed = perturb(federation(hub, *KD, *own, model="bert", task=task))
    sides = [plain_model(fed) for _ in range(3)]
    run_rounds(fed, 1)
    public, said, sizes = public_set(fed), list[list[Tensor]](), list[int]()
    for number, plain in enumerate(sides[:2]):
        optimizer = torch.optim.SGD(trained(plain).values(), lr=0.1)
        plain_steps(plain, round_batches(fed, 1, number), optimizer)
        with torch.no_grad():
            found = [plain.eval()(**plain_batch([e])[0]).logits[0] for e in public]
        said.append([soften(counted(logits, e)) for logits, e in zip(found, public, strict=True)])
        # Where tokens count, so do a client's; else texts do.
        counts = [len(counted(e.labels, e)) for e in fed.clients[number].examples]
        sizes.append(sum(counts))
    assert sizes[0] != sizes[1]
    teacher = {
        e.index: (a * sizes[0] + b * sizes[1]) / sum(sizes)
        for e, a, b in zip(public, *said, strict=True)
    }

    def loss(module: nn.Module, chunk: list[Example]) -> Tensor:
        logits = module(**plain_batch(chunk)[0]).logits
        student = [counted(own, e) for own, e in zip(logits, chunk, strict=True)]
        own = torch.cat([teacher[e.index] for e in chunk])
        num_rows = len(own) if task == "token_classification" else own.numel()
        return divergence(torch.cat(student), own) / num_rows

    student = sides[2]
    chunks = epoch(public, 8, generator(fed.config.seed, "distil", "server", 1))
    optimizer = torch.optim.SGD(trained(student).values(), lr=0.1)
    plain_steps(student.train(), chunks, optimizer, None, loss)
    assert distance(fed.server.state, trained(student)) < 1e-6  # soft labels cross as float32
    assert distance(fed.server.state, fed.model.initial) > 1e-3


@pytest.mark.usefixtures("uncounted")
@pytest.mark.parametrize("task", SOFT)
def test_an_export_says_the_same_in_a_plain_pipeline(hub: Path, tmp_path: Path, task: str) -> None:
    words = ("rounds=1", "training.local_steps=1", "model.dtype=float32")
    config = experiment_config(hub, *words, model="bert", task=task)
    build(config, RunFolder(tmp_path / "run", "run")).run()
    export_run(tmp_path / "run", tmp_path / "whole", merge=True)
    source = {"data": {"source": {"name": "files", "train": str(hub / f"{task}.jsonl")}}}
    found = [one.line() for one in predict_run(tmp_path / "run", source, Writing(4))]
    judge = pipeline(PIPELINES[task], model=str(tmp_path / "whole"), device="cpu")
    compared = 0
    for one in found[:12]:
        compared += SAME[task](one, judge(one["text"], **OPTIONS.get(task, {})))
    assert compared > 3


def same_shares(one: dict[str, Any], said: list[dict[str, Any]]) -> int:
    """Compare the probability of every label."""
    shares = {each["label"]: each["score"] for each in said}
    assert shares == pytest.approx(one["probabilities"], abs=1e-5)
    return len(shares)


def same_values(one: dict[str, Any], said: list[dict[str, Any]]) -> int:
    """Compare every number."""
    assert {each["label"]: each["score"] for each in said} == pytest.approx(one["values"], abs=1e-5)
    return len(said)


def same_tags(one: dict[str, Any], said: list[dict[str, Any]]) -> int:
    """Compare entities; a word of these texts is a token."""
    assert [(e["entity_group"], e["start"], e["end"]) for e in said] == [
        (e["label"], e["start"], e["end"]) for e in one["entities"]
    ]
    scores = [float(e["score"]) for e in said]
    assert scores == pytest.approx([e["score"] for e in one["entities"]], abs=1e-5)
    return len(said)


PIPELINES = dict.fromkeys(("multi_label", "regression"), "text-classification")
OPTIONS: dict[str, dict[str, Any]] = {task: {"top_k": None} for task in PIPELINES}
PIPELINES["token_classification"] = "token-classification"
OPTIONS["token_classification"] = {"aggregation_strategy": "simple"}
SAME = {"token_classification": same_tags, "multi_label": same_shares, "regression": same_values}


@pytest.mark.parametrize(
    ("task", "word", "why"),
    [
        ("regression", "framework={name: kd, ensemble: confidence}", "it weighs probabilities"),
        ("regression", "framework={name: kd, ensemble: vote}", "it weighs probabilities"),
        ("regression", "framework={name: kd, average: probabilities}", "where logits are averaged"),
        ("regression", "framework={name: kd, sharpening: power}", "a sharper distribution"),
        ("regression", "framework={name: kd, temperature: 3}", "numbers are averaged and compared"),
        (
            "regression",
            "framework=kd wire.up=[{name: top_classes, k: 1}]",
            "and both say the number",
        ),
        (
            "regression",
            "framework={name: kd, ensemble: vote} training.max_length=9 "
            "privacy={name: client, noise: 1}",
            "numbers are none",
        ),
        ("regression", "data.partition=dirichlet", "divides rows by class"),
        ("regression", "head=ridge", "one class each"),
        ("multi_label", "head=class_means", "one class each"),
        ("token_classification", "head=class_sums", "a row for each of its words"),
        ("token_classification", "data.partition=shard", "divides rows by class"),
        ("multi_label", "framework={name: kd, ensemble: class_counts}", "counts examples by class"),
        ("multi_label", "data.source=builtin", "its rows are for causal_lm, classification"),
        ("multi_label", "task={name: multi_label, logit_adjustment: 1}", "no setting"),
    ],
)
def test_what_has_no_meaning_is_refused(hub: Path, task: str, word: str, why: str) -> None:
    words = re.split(r" (?=[\w.]+=)", word)
    with pytest.raises(UserError, match=why):
        experiment_config(hub, *words, model="bert", task=task)


def test_soft_labels_of_numbers_are_averaged_as_logits_by_default(hub: Path) -> None:
    config = experiment_config(hub, "framework=kd", model="bert", task="regression")
    assert config.framework.average == "logits"  # type: ignore[attr-defined]
