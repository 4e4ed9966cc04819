"""Preference optimisation = a plain loop of Transformers and PEFT, with FedLLM and across a cut."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tiny import (
    EXACT,
    distance,
    federation,
    perturb,
    plain_model,
    plain_steps,
    round_batches,
    run_rounds,
    trained,
)
from trillium.experiment.run import Experiment
from trillium.frameworks.split.pooled import Forwarded
from trillium.tasks import IGNORE, Batch, Example, vocabulary
from trillium.tasks.batches import collate
from trillium.tasks.preference import Preference, without_adapter
from trillium.training.counting import counting
from trillium.training.loop import TaskLoss
from trillium.wire.kinds import MessageError
from trillium.wire.message import Message
from variants import slow_but

BETA = 0.3
SHAPES = {
    "two_part": ("framework=split",),
    "u": ("framework={name: split, shape: u}",),
    "u with a block": ("framework={name: split, shape: u, tail: 2}",),
}


@pytest.fixture
def in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if some dozens of words were many: three rows of logits at once."""
    monkeypatch.setattr(vocabulary, "WIDE", 1)
    monkeypatch.setattr(vocabulary, "CHUNK", 44 * 3)


def preferring(hub: Path, *words: str, model: str = "gpt2") -> Experiment:
    own = ("data.num_clients=1", f"task.beta={BETA}", "training.batch_size=5", *words)
    return federation(hub, *own, model=model, task="preference")


def log_probability(module: nn.Module, text: Example) -> Tensor:
    """Return that of an answer, from one text without padding."""
    logits = module(input_ids=text.input_ids[None]).logits[0, :-1].log_softmax(-1)
    found = [
        logits[at, token] for at, token in enumerate(text.labels[1:].tolist()) if token != IGNORE
    ]
    return torch.stack(found).sum()


def ratios(module: Any, pair: Example) -> list[Tensor]:
    """Return by how much each answer has become more probable than without the adapter."""
    found = []
    for text in (pair, pair.rejected):
        assert text is not None
        with torch.no_grad(), module.disable_adapter():
            before = log_probability(module, text)
        found.append(log_probability(module, text) - before)
    return found


def dpo(module: nn.Module, pairs: list[Example], beta: float = BETA) -> Tensor:
    """Return equation 7 of arXiv 2305.18290, pair by pair."""
    losses = []
    for pair in pairs:
        chosen, rejected = ratios(module, pair)
        losses.append(-torch.log(1 / (1 + torch.exp(-(beta * chosen - beta * rejected)))))
    return torch.stack(losses).mean()


def test_the_loss_is_that_of_equation_7() -> None:
    # Two words; each text has one supervised token behind the first, the last one two.
    odds = [[0.7, 0.3], [0.4, 0.6], [0.5, 0.5], [0.8, 0.2]]
    logits = torch.tensor([[row, row, [0.5, 0.5]] for row in odds], dtype=torch.float64).log()
    labels = torch.tensor([[9, 0, IGNORE], [9, 1, IGNORE], [9, 1, IGNORE], [9, 0, 0]])
    reference = torch.tensor([0.5, 0.5, 0.25, 0.1], dtype=torch.float64).log()
    loss, count = Preference(beta=0.5).loss(logits, labels, reference=reference)
    margins = [
        0.5 * (math.log(0.7 / 0.5) - math.log(0.6 / 0.5)),
        0.5 * (math.log(0.5 / 0.25) - math.log(0.8**2 / 0.1)),
    ]
    assert count == 2
    assert float(loss) == pytest.approx(sum(math.log(1 + math.exp(-m)) for m in margins), rel=1e-12)
    assert margins[0] > 0 > margins[1]


@pytest.mark.parametrize("model", ["gpt2", "llama"])
def test_one_client_is_a_plain_loop(hub: Path, model: str) -> None:
    clip = "training.max_grad_norm=0.2"
    fed = perturb(preferring(hub, "training.weight_decay=0.1", clip, model=model))
    plain, start = plain_model(fed), trained(plain_model(fed))
    for number, figure in enumerate(run_rounds(fed, 2), start=1):
        optimizer = torch.optim.AdamW(trained(plain).values(), lr=0.01, weight_decay=0.1)
        chunks = round_batches(fed, number)
        losses = plain_steps(plain, chunks, optimizer, clip=0.2, loss=dpo)
        sizes = [len(chunk) for chunk in chunks]
        mean = sum(a * b for a, b in zip(losses, sizes, strict=True)) / sum(sizes)
        assert figure["train_loss"] == pytest.approx(mean, abs=EXACT[model])
    assert distance(fed.server.state, trained(plain)) < EXACT[model]
    assert distance(fed.server.state, start) > 1e-2


def test_another_beta_is_told_apart(hub: Path) -> None:
    fed = perturb(preferring(hub, "training.max_grad_norm=null", "rounds=1"))
    plain = plain_model(fed)
    run_rounds(fed, 1)
    optimizer = torch.optim.AdamW(trained(plain).values(), lr=0.01, weight_decay=0.0)
    plain_steps(plain, round_batches(fed, 1), optimizer, loss=lambda m, e: dpo(m, e, 0.31))
    assert distance(fed.server.state, trained(plain)) > 1e-6


@pytest.mark.parametrize("words", [(), ("training.micro_batch_size=2",), SHAPES["u"]])
@pytest.mark.usefixtures("in_parts", "uncounted")
def test_logits_in_parts_change_nothing(
    hub: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    found = perturb(preferring(hub, *words))
    run_rounds(found, 1)
    monkeypatch.setattr(vocabulary, "WIDE", 10**6)
    whole = perturb(preferring(hub, *words))
    run_rounds(whole, 1)
    assert distance(found.server.state, whole.server.state) < 1e-12


@pytest.mark.parametrize(
    ("model", "shape", "size"),
    slow_but(
        [("gpt2", "two_part", "null"), ("llama", "u with a block", "2")],
        [(m, s, n) for m in ("gpt2", "llama") for s in SHAPES for n in ("null", "2")],
    ),
)
@pytest.mark.usefixtures("uncounted")
def test_a_cut_model_learns_what_the_whole_does(
    hub: Path, model: str, shape: str, size: str
) -> None:
    words = (*SHAPES[shape], f"training.micro_batch_size={size}", "training.max_grad_norm=0.2")
    fed = perturb(preferring(hub, *words, model=model))
    plain = plain_model(fed)
    optimizer = torch.optim.AdamW(trained(plain).values(), lr=0.01, weight_decay=0.0)
    run_rounds(fed, 2)
    for number in (1, 2):
        plain_steps(plain, round_batches(fed, number), optimizer, clip=0.2, loss=dpo)
    assert distance(fed.server.state, trained(plain)) < EXACT[model]


@pytest.mark.parametrize(("train", "times"), [("both", 2), ("server", 1)])
def test_activations_without_the_adapter_cross_where_they_differ(
    hub: Path, train: str, times: int
) -> None:
    fed = preferring(hub, f"framework={{name: split, train: {train}, cache: false}}", "rounds=1")
    run_rounds(fed, 1)
    forwards = [e for e in fed.fleet.ledger.entries if (e.verb, e.direction) == ("forward", "up")]
    kinds = Counter[str]()
    for entry in forwards:
        kinds.update(entry.kinds)
    tokens = sum(len(t.input_ids) for e in fed.clients[0].examples for t in e.texts)
    assert kinds["activations"] == times * tokens * 12 * 8


@pytest.mark.parametrize(
    ("lengths", "reference", "why"),
    [([3, 2, 2], 7, "no pairs"), ([3, 2], 4, "reference"), ([3, 2], 0, "reference")],
)
def test_a_client_that_sends_no_pairs_is_refused(
    hub: Path, lengths: list[int], reference: int, why: str
) -> None:
    server, tokens = preferring(hub).server, sum(lengths)
    tensors = {
        "control/lengths": torch.tensor(lengths, dtype=torch.int32),
        "activations/hidden": torch.zeros(tokens, 12),
        "activations/reference": torch.zeros(reference, 12),
        "labels/labels": torch.ones(tokens, dtype=torch.int32),
    }
    if not reference:
        del tensors["activations/reference"]
    options: dict[str, Any] = {
        "width": 12,
        "num_classes": 44,
        "with_labels": True,
        "with_reference": True,
    }
    with pytest.raises(MessageError, match=why):
        Forwarded.read(Message("forward", tensors), server.task, server.training, **options)


def test_the_reference_is_counted(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step costs as much more as a pass without the adapter."""

    def flops() -> float:
        fed = preferring(hub, "rounds=1", "training.local_steps=1")
        run_rounds(fed, 1)
        return sum(entry.flops or 0.0 for entry in fed.fleet.ledger.entries)

    fed, whole = preferring(hub, "training.local_steps=1"), flops()
    module = fed.model.mount(fed.model.state())
    batch = collate(round_batches(fed, 1)[0], 0, fed.model.device)
    with (
        torch.no_grad(),
        counting(fed.model.device, tuple) as count,
        without_adapter(module),
    ):
        module(**batch.inputs)

    def nothing(task: Preference, module: nn.Module, batch: Batch) -> Tensor:
        return torch.zeros(len(batch.labels), dtype=torch.float64)

    monkeypatch.setattr(Preference, "reference", nothing)
    assert whole - flops() == count.flops > 0


def test_what_is_measured(hub: Path) -> None:
    fed = perturb(preferring(hub))
    plain, state = plain_model(fed).eval(), fed.model.state()
    found = fed.server.evaluate(state, 64)
    pairs = [[BETA * float(r.detach()) for r in ratios(plain, e)] for e in fed.server.test]
    margins = [chosen - rejected for chosen, rejected in pairs]
    count = len(pairs)
    assert found == pytest.approx(
        {
            "reward_accuracy": sum(margin > 0 for margin in margins) / count,
            "reward_margin": sum(margins) / count,
            "reward_chosen": sum(chosen for chosen, _ in pairs) / count,
            "reward_rejected": sum(rejected for _, rejected in pairs) / count,
            "loss": sum(math.log(1 + math.exp(-m)) for m in margins) / count,
            "num_examples": count,
        },
        rel=1e-6,
    )
    assert 0 < found["reward_accuracy"] < 1


def test_the_reference_is_the_same_whatever_trains(hub: Path) -> None:
    """It has no dropout, and lets nothing train that was frozen."""
    fed = perturb(preferring(hub, "model.dropout=0.5", "adapter.dropout=0.5"))
    task, state = fed.config.task, fed.model.state()
    assert isinstance(task, Preference)
    for name, parameter in state.items():
        parameter.requires_grad_("lora_A" not in name)
    module = fed.model.mount(state).train()
    batch: Batch = collate(fed.clients[0].examples[:3], 0, fed.model.device)
    first, second = (task.reference(module, batch) for _ in range(2))
    assert torch.equal(first, second)
    assert module.training
    loss, _ = TaskLoss(task, None)(module, batch)
    loss.backward()  # type: ignore[no-untyped-call]
    assert {n for n, p in state.items() if p.grad is not None} == {
        n for n in state if "lora_B" in n
    }
