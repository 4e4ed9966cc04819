"""What cannot work is refused before the first round, as early as it can be known."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

import trillium.experiment.residents as residents
import trillium.experiment.run as run
from tiny import experiment_config, federation
from trillium.errors import UserError

# Decided by the configuration alone.
CONFIG = [
    (("framework=split", "framework={shape: u, cut: 2, tail: 2}"), "tail=2 with framework.cut=2"),
    (("framework=split", "adapter={name: prompt}"), "adapter=prompt"),
    (
        ("framework=split", "framework={train: server, cache: true}", "model.dropout=0.1"),
        "model.dropout=0.1",
    ),
    (
        ("framework=split", "framework={train: server, local_rounds: 1}", "adapter.dropout=0.1"),
        "adapter.dropout",
    ),
    (("framework=split", "framework.delta={}", "model.dropout=0.1"), "model.dropout=0.1"),
    (("framework=split", "framework={train: server, cache: true, staleness: 1}"), "staleness=1"),
    (
        (
            "framework=split",
            "framework.mode=coalesced",
            "framework={train: server, cache: true}",
            "tiers={a: {clients: [client-0], local_steps: 3}}",
        ),
        "tiers.a.local_steps",
    ),
    (("framework=split", "task={name: classification, logit_adjustment: 1}"), "logit_adjustment"),
    (("model.quantize=nf4",), "random_weights"),
    (("model={quantize: nf4, random_weights: false, dtype: float64}",), "float64"),
    (
        ("model={quantize: nf4, random_weights: false, dtype: float32}", "adapter={name: full}"),
        "adapter=full",
    ),
    (("fleet={clients_per_round: 2, min_replies: 3}",), "min_replies=3"),
    (("fleet.failure_rate=0.5",), "failure_rate=0.5"),
    (("framework=fedkseed", "training.optimizer.lr=0.5"), "training.optimizer.lr"),
    (("framework=fedkseed", "training.max_grad_norm=2"), "training.max_grad_norm"),
    (
        (
            "framework=fedllm",
            "framework={upload: gradient, server_optimizer: adam}",
            "training.schedule=linear",
        ),
        "training.schedule",
    ),
    (
        ("framework=kd", "framework.ensemble=noisy_mean", "framework.average=logits"),
        "framework.average",
    ),
    (("training.local_steps=3", "training.local_epochs=2"), "training.local_epochs"),
    (("framework=zero_shot", "fleet.clients_per_round=2"), "fleet.clients_per_round"),
]

# Decided by it, and by what this machine and its simulated clients are.
READY = [
    (("fleet.clients_per_round=7",), "clients_per_round=7"),
    (("fleet.min_replies=4",), "min_replies=4"),
    (("model={quantize: nf4, random_weights: false, dtype: float32}",), "bitsandbytes"),
]
# Decided by the rows, before a model is read.
ROWS = [
    (("tiers={a: {clients: [nobody], local_steps: 2}}",), "tiers.a.clients"),
    (
        ("tiers={a: {clients: ['*'], local_steps: 2}, b: {clients: [client-0], local_steps: 3}}",),
        "tiers.b",
    ),
    (("tiers={a: {local_steps: 2}}",), "tiers.a.clients"),
]
# Decided by the model, before the first round.
MODEL = [
    (("training.lr_factors={nosuch: 0}",), "nosuch"),
    (("training.lr_factors={lora_A: 0, lora_B: 0, head: 0}",), "it freezes everything"),
    (("framework=fedllm", "framework.local=[nosuch]"), "nosuch"),
    (
        (
            "framework=fedllm",
            "framework.aggregator=svd",
            "tiers={a: {clients: [client-0], layers: [7]}}",
        ),
        "3 blocks",
    ),
    (("framework=split", "framework.train=client", "adapter.layers=[2]"), "nothing could learn"),
    (
        (
            "framework=split",
            "framework={train: client, shape: u}",
            "task=causal_lm",
            "adapter.layers=[2]",
        ),
        "nothing could learn",
    ),
    (
        ("framework=split", "framework={train: server, local_rounds: 1}", "adapter.layers=[2]"),
        "by themselves",
    ),
]


@pytest.mark.parametrize(("words", "said"), CONFIG)
def test_from_the_configuration_alone(hub: Path, words: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError, match=said):
        experiment_config(hub, *words)


@pytest.mark.parametrize(("words", "said"), READY)
def test_before_any_file_is_read(
    hub: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], said: str
) -> None:
    if importlib.util.find_spec(said) is not None:
        pytest.skip(f"{said} is installed")  # it is its absence that is looked for
    monkeypatch.setattr(run, "load_data", lambda *_: pytest.fail("rows were read"))
    with pytest.raises(UserError, match=said):
        federation(hub, *words)


@pytest.mark.parametrize(("words", "said"), ROWS)
def test_from_the_rows_before_the_model(
    hub: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], said: str
) -> None:
    monkeypatch.setattr(residents, "load_model", lambda *_, **__: pytest.fail("a model was read"))
    with pytest.raises(UserError, match=said):
        federation(hub, *words)


@pytest.mark.parametrize(("words", "said"), MODEL)
def test_before_the_first_round(hub: Path, words: tuple[str, ...], said: str) -> None:
    task = "causal_lm" if "task=causal_lm" in words else "classification"
    with pytest.raises(UserError, match=said):
        federation(hub, *words, task=task).run()


def test_texts_that_leave_no_room_for_virtual_tokens(hub: Path) -> None:
    with pytest.raises(UserError, match=r"60 virtual tokens.*64 positions"):
        federation(hub, "adapter={name: prompt, tokens: 60}", model="bert")
    federation(hub, "adapter={name: prompt, tokens: 40}", model="bert")
    words = ("adapter={name: prompt, tokens: 52}", "training.max_length=12")
    with pytest.raises(UserError, match=r"behind 52 virtual ones.*64 positions"):
        federation(hub, *words, model="bert")


def test_answers_that_leave_the_model_behind(hub: Path) -> None:
    words = ("task={name: causal_lm, generate: 3, max_new_tokens: 63}",)
    with pytest.raises(UserError, match="max_new_tokens=63"):
        federation(hub, *words, task="causal_lm")
    federation(hub, "task={name: causal_lm, generate: 3, max_new_tokens: 40}", task="causal_lm")


def test_scaffold_with_tensors_that_stay(hub: Path) -> None:
    fed = federation(hub, "framework={name: fedllm, drift: scaffold, local: [head, lora_B]}")
    assert fed.run()[-1]["train_loss"] > 0
