"""KD-FedLLM between different models: nothing but soft labels has to fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tiny import Recorder, distance, experiment_config, federation, run_rounds
from trillium.config.experiment import experiment
from trillium.errors import UserError
from trillium.experiment.run import Experiment
from trillium.frameworks import once_bytes
from trillium.wire.message import decode

KD = "framework=kd"
TARGETS = "[q_proj, v_proj]"


def mixed(hub: Path, *words: str) -> Experiment:
    """A BERT at the server, GPT-2 and Llama at the clients."""
    llama = f"{{model: {{id: {hub / 'llama'}}}, adapter: {{r: 2, target_modules: {TARGETS}}}}}"
    return federation(
        hub,
        KD,
        f"tiers={{small: {{clients: [client-1], {llama[1:-1]}}}}}",
        f"server={{model: {{id: {hub / 'bert'}}}, adapter: {{target_modules: [query, value]}}}}",
        *words,
    )


def test_a_tier_takes_what_it_leaves_out_from_the_run(hub: Path) -> None:
    fed = mixed(hub)
    own = fed.config.of("client-1")
    assert own.model.id == str(hub / "llama")
    assert own.model.dtype == "float64"
    assert own.model.random_weights
    assert own.adapter.model_dump()["r"] == 2
    assert own.adapter.model_dump()["alpha"] == 5
    assert fed.config.of("client-0").model == fed.config.model
    assert experiment(fed.config.tree()) == fed.config


def test_different_models_learn_from_one_another(hub: Path) -> None:
    fed = mixed(hub)
    first = [c.model.state(c.initial) for c in fed.clients]
    log = Recorder(fed)
    run_rounds(fed, 2)
    kinds = [type(c.model.module.get_base_model()).__name__ for c in fed.clients]  # type: ignore[operator]
    assert kinds == [
        "GPT2ForSequenceClassification",
        "LlamaForSequenceClassification",
        "GPT2ForSequenceClassification",
    ]
    assert fed.server.groups == [[], ["client-0", "client-2"], ["client-1"]]
    assert fed.clients[0].model is fed.clients[2].model
    assert type(fed.model.module.get_base_model()).__name__ == "BertForSequenceClassification"  # type: ignore[operator]
    for client, before in zip(fed.clients, first, strict=True):
        assert distance(client.store["tensors"], before) > 0
    assert distance(fed.server.state, fed.model.initial) > 0
    for _, ask, reply in log.log:
        crossed = {name.split("/")[0] for data in (ask, reply) for name in decode(data).tensors}
        assert crossed <= {"control", "logits", "public"}


def test_a_tier_that_names_the_same_model_changes_nothing(hub: Path) -> None:
    def run(*words: str) -> tuple[list[tuple[str, bytes]], Experiment]:
        fed = federation(hub, KD, *words)
        log = Recorder(fed)
        run_rounds(fed, 2)
        return [(client, ask) for client, ask, _ in log.log], fed

    plain, same = (
        run(),
        run(f"tiers={{one: {{clients: [client-1], model: {{id: {hub / 'gpt2'}}}}}}}"),
    )
    assert plain[0] == same[0]
    assert distance(plain[1].server.state, same[1].server.state) == 0.0
    assert same[1].server.groups == [["client-0", "client-1", "client-2"]]
    other = run("tiers={one: {clients: [client-1], adapter: {r: 2}}}")
    assert other[0] != plain[0]
    assert other[1].server.groups == [["client-0", "client-2"], ["client-1"]]


def test_clients_are_measured_with_their_own_models(hub: Path) -> None:
    fed = mixed(hub)
    run_rounds(fed, 1)
    flops = {e.client: e.flops for e in fed.fleet.ledger.entries if e.verb == "teach" and e.flops}
    alone = federation(hub, KD, "adapter.r=2", f"adapter.target_modules={TARGETS}", model="llama")
    run_rounds(alone, 1)
    wanted = {
        e.client: e.flops for e in alone.fleet.ledger.entries if e.verb == "teach" and e.flops
    }
    assert flops["client-1"] == wanted["client-1"]
    assert flops["client-0"] != wanted["client-0"]


def test_what_a_client_must_hold_is_the_largest_of_their_models(hub: Path) -> None:
    fed = mixed(hub)
    sizes = [
        sum(t.nbytes for n, t in c.model.module.state_dict().items() if "lora_" not in n)
        for c in fed.clients
    ]
    held = once_bytes(fed.config.framework, fed.server, fed.clients)["base_model"]
    assert 0.9 * max(sizes) < held <= max(sizes)  # but for the task head, which trains
    assert len(set(sizes)) == 2
    assert once_bytes(fed.config.framework, fed.server, []) == {}  # the server has neither of them


def test_heads_in_closed_form_are_solved_by_model(hub: Path) -> None:
    head, names = "head=ridge", ["client-0", "client-2"]
    fed = mixed(hub, head)
    fed.config.head.start(fed.server, fed.fleet)
    alone = federation(hub, KD, head)  # all have the GPT-2 that two of the mixed ones have
    alone.server.groups = [names]
    alone.config.head.start(alone.server, alone.fleet)
    found, wanted = fed.server.store["heads"]["1"], alone.server.store["heads"]["0"]
    assert distance(found["unscaled"], wanted["unscaled"]) < 1e-12
    assert found["scale"] == wanted["scale"]
    everyone = federation(hub, KD, head)
    everyone.config.head.start(everyone.server, everyone.fleet)
    pooled = everyone.server.store["heads"]["0"]["unscaled"]
    assert distance(found["unscaled"], pooled) > 1e-3
    for client in fed.clients:
        assert torch.is_tensor(client.store["head"][next(iter(client.store["head"]))])
    assert "head" not in fed.server.store  # nobody else has its model
    run_rounds(fed, 1)


def test_what_exchanges_parameters_refuses_different_models(hub: Path) -> None:
    tier = f"tiers={{one: {{clients: [client-1], model: {{id: {hub / 'llama'}}}}}}}"
    for name in ("fedllm", "split", "fedkseed", "centralised"):
        with pytest.raises(UserError, match="tiers with model or adapter"):
            experiment_config(hub, f"framework={name}", tier)
    experiment_config(hub, "framework=local_only", tier)
