"""Rounds in which clients train their first blocks alone, from a small head of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tiny import (
    EXACT,
    distance,
    federation,
    perturb,
    plain_batch,
    plain_model,
    round_batches,
    run_rounds,
    trained,
)
from trillium.errors import UserError
from trillium.experiment.run import Experiment
from trillium.tasks import IGNORE, Example

pytestmark = pytest.mark.usefixtures("uncounted")

CASES = [("gpt2", "classification"), ("bert", "classification"), ("gpt2", "causal_lm"),
         ("llama", "causal_lm")]  # fmt: skip
CLIP, STEPS, CLASSES, WIDTH = 0.2, 4, 3, 12


def split(hub: Path, *words: str, **options: Any) -> Experiment:
    own = ("framework=split", f"training.max_grad_norm={CLIP}", f"training.local_steps={STEPS}")
    return perturb(federation(hub, *own, *words, **options))


class Plain:
    """The same written out: the unsplit model, and a linear layer on what its first block gives."""

    def __init__(self, fed: Experiment) -> None:
        self.module = plain_model(fed)
        base = self.module.get_base_model()  # type: ignore[operator]
        self.words = base.get_input_embeddings().weight.detach()
        classifies = fed.config.task.name == "classification"
        weight = torch.zeros(CLASSES, WIDTH) if classifies else torch.eye(WIDTH)
        self.head = [nn.Parameter(weight.double())]
        self.head += [nn.Parameter(torch.zeros(CLASSES).double())] if classifies else []
        self.first = {n: p for n, p in trained(self.module).items() if ".0." in _block(n)}

    def first_loss(self, examples: list[Example]) -> Tensor:
        inputs, labels = plain_batch(examples)
        hidden = self.module(**inputs, output_hidden_states=True).hidden_states[1]
        rows = functional.layer_norm(hidden, (WIDTH,))
        if labels.dim() == 1:
            sums = (rows * inputs["attention_mask"][..., None]).sum(1)
            mean = sums / inputs["attention_mask"].sum(1, keepdim=True)
            return functional.cross_entropy(mean @ self.head[0].T + self.head[1], labels)
        logits = (rows @ self.head[0].T @ self.words.T)[:, :-1].flatten(0, 1)
        return functional.cross_entropy(logits, labels[:, 1:].flatten(), ignore_index=IGNORE)

    def optimizer(self, *groups: list[nn.Parameter]) -> torch.optim.Optimizer:
        found = [parameter for group in groups for parameter in group]
        return torch.optim.AdamW(found, lr=0.01, weight_decay=0.0)


def _block(name: str) -> str:
    """The part of a name that says which block it is in."""
    for mark in (".h.", ".layer.", ".layers."):
        if mark in name:
            return "." + name.split(mark)[1].split(".")[0] + "."
    return ""


def steps(
    chunks: list[list[Example]],
    losses: Callable[[list[Example]], list[Tensor]],
    optimizers: list[torch.optim.Optimizer],
) -> None:
    for chunk in chunks:
        for optimizer in optimizers:
            optimizer.zero_grad()
        for loss in losses(chunk):
            loss.backward()  # type: ignore[no-untyped-call]
        groups = [o.param_groups[0]["params"] for o in optimizers]
        nn.utils.clip_grad_norm_([p for group in groups for p in group], CLIP)
        for optimizer in optimizers:
            optimizer.step()


@pytest.mark.parametrize(("model", "task"), CASES)
def test_a_round_alone_is_plain_training_of_the_first_blocks(
    hub: Path, model: str, task: str
) -> None:
    words = ("data.num_clients=1", "framework.train=server", "framework.local_rounds=1")
    fed = split(hub, *words, model=model, task=task)
    plain = Plain(fed)
    [figures] = run_rounds(fed, 1)
    optimizer = plain.optimizer([*plain.first.values()], plain.head)
    chunks = round_batches(fed, 1)
    before = float(plain.first_loss(chunks[0]))
    steps(chunks, lambda chunk: [plain.first_loss(chunk)], [optimizer])
    assert distance(fed.server.state, trained(plain.module)) < EXACT[model]
    assert all(
        torch.equal(p, fed.model.initial[n]) != (n in plain.first)
        for n, p in fed.server.state.items()
    )
    assert float(plain.first_loss(chunks[0])) < before
    assert figures["train_loss"] > 0


def test_then_the_blocks_are_frozen_and_their_activations_cross_once(hub: Path) -> None:
    words = ("framework.train=server", "framework.local_rounds=2", "rounds=4")
    fed = split(hub, *words)
    states = [{n: p.detach().clone() for n, p in fed.server.state.items()}]
    fed.run(lambda _: states.append({n: p.detach().clone() for n, p in fed.server.state.items()}))
    states = states[1:]  # the one before the first round is there twice
    first = Plain(fed).first
    for number in range(1, 5):
        for name in states[0]:
            moved = not torch.equal(states[number][name], states[number - 1][name])
            assert moved == ((number <= 2) == (name in first)), (number, name)
    verbs = {
        number: {
            e.verb for e in fed.fleet.ledger.entries if e.round == number and e.purpose == "train"
        }
        for number in range(1, 5)
    }
    assert verbs[1] == verbs[2] == {"train_blocks"}
    assert verbs[3] == {"list_samples", "send_activations"}
    assert verbs[4] == {"list_samples"}
    # What was cached is what the trained blocks give.
    cache = fed.server.scratch["cache"]
    module = fed.model.mount(fed.server.state).eval()
    for client in fed.clients:
        assert client.store["blocks"].keys() == first.keys()
    examples = [e for client in fed.clients for e in client.examples]
    for example, sample in zip(examples[:8], cache.pool(), strict=False):
        inputs, _ = plain_batch([example])
        with torch.no_grad():
            hidden = module(**inputs, output_hidden_states=True).hidden_states[1][0]
        torch.testing.assert_close(cache.rows([sample]), hidden)


def test_clients_blocks_are_averaged_by_examples(hub: Path) -> None:
    words = ("framework.train=server", "framework.local_rounds=1", "data.num_clients=2",
             "data.partition={name: size_skewed, power: 1.0}")  # fmt: skip
    fed = split(hub, *words)
    run_rounds(fed, 1)
    alone = []
    for index in range(2):
        plain = Plain(fed)
        optimizer = plain.optimizer([*plain.first.values()], plain.head)
        one = lambda chunk, plain=plain: [plain.first_loss(chunk)]  # noqa: E731
        steps(round_batches(fed, 1, index), one, [optimizer])
        alone.append(plain.first)
    weights = [len(client.examples) for client in fed.clients]
    assert weights[0] != weights[1]
    for name in alone[0]:
        mean = sum(w * one[name] for w, one in zip(weights, alone, strict=True)) / sum(weights)
        torch.testing.assert_close(fed.server.state[name], mean, atol=1e-10, rtol=0)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("framework.local_rounds=2", "rounds=2", "framework.train=server"), "no round is left"),
        (("framework.local_rounds=1",), "are frozen"),
        (
            ("framework.local_rounds=1", "framework.train=server", "framework.cache=false"),
            "are frozen",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(hub: Path, words: tuple[str, ...], why: str) -> None:
    with pytest.raises(UserError, match=why):
        split(hub, *words)
