"""Ends of their own: clients fine-tune the model that is shipped, and keep what comes of it."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from papers import hold
from tiny import experiment_config, federation, plain_steps, trained
from trillium.config.experiment import experiment, parse_overrides
from trillium.errors import UserError
from trillium.experiment.folder import RunFolder
from trillium.experiment.run import Experiment, build
from trillium.experiment.trained import load_trained
from trillium.frameworks.finetuning import OWN
from trillium.models.slots import matches
from trillium.plan.predict import predict
from trillium.plan.result import texts_of, to_dict
from trillium.report.read import read_run
from trillium.report.summary import summarise
from trillium.rng import generator
from trillium.training.loop import batches

WHERE = "evaluation.where=clients"
WORDS = (
    *(WHERE, "finetune={local_steps: 5, tensors: [head]}", "training.batch_size=4"),
    *("training.optimizer={name: sgd, lr: 0.1}", "training.max_grad_norm=null"),
)
FRAMEWORKS = {
    "fedllm": ("framework=fedllm",),
    "folds": ("framework.aggregator=stack",),
    "kd": ("framework=kd",),
}


@pytest.mark.usefixtures("uncounted")
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_clients_head_is_that_of_plain_pytorch(hub: Path, framework: str) -> None:
    """From the model that is shipped; all other tensors stay, and so does the server's model."""
    fed = federation(hub, *WORDS, *FRAMEWORKS[framework], model="bert")
    fed.run()
    shipped = {name: tensor.detach().clone() for name, tensor in fed.server.state.items()}
    training = fed.config.training.model_copy(update={"local_steps": 5})
    for client in fed.clients:
        module = plain_model_of(fed)
        head = {n: p for n, p in trained(module).items() if matches(n, ["head"])}
        assert head
        optimizer = training.build(head)
        draw = generator(fed.config.seed, "finetune", client.name, fed.config.rounds)
        chunks = batches(client.examples, training, draw)
        plain_steps(module, chunks, optimizer, clip=training.max_grad_norm)
        found = client.store[OWN]
        for name, tensor in shipped.items():
            expected = head[name].detach() if name in head else tensor
            assert torch.allclose(found[name], expected, atol=1e-9), name
            assert torch.equal(fed.server.state[name], tensor)
        moved = max(float((found[n] - shipped[n]).abs().max()) for n in head)
        assert moved > 1e-4


def plain_model_of(fed: Experiment) -> nn.Module:

    module = copy.deepcopy(fed.model.mount(fed.server.state, fed.server.base))
    module.train()
    return module


@pytest.mark.usefixtures("uncounted")
def test_it_is_measured_before_and_after_and_kept(hub: Path, tmp_path: Path) -> None:
    config = experiment_config(hub, *WORDS, "evaluation={where: clients, keep: best}")
    built = build(config, RunFolder(tmp_path / "run", "run"))
    history = built.run()
    found = json.loads((tmp_path / "run" / "finetuned.json").read_text())
    kept = history[read_run(tmp_path / "run").kept_round]
    assert found["before"]["loss"] == pytest.approx(kept["loss"], rel=1e-9), "that which is shipped"
    assert set(found["after"]["clients"]) == {client.name for client in built.clients}
    assert found["after"]["loss"] != pytest.approx(kept["loss"], rel=1e-6)
    for client in built.clients:
        own = client.tally(client.model.state(client.store[OWN]), {}, 64)
        assert config.task.metrics(own) == pytest.approx(found["after"]["clients"][client.name])
        state = load_trained(tmp_path / "run", client.name).state
        assert all(torch.equal(state[n], t) for n, t in client.store[OWN].items())
    values = summarise([read_run(tmp_path / "run")])[0].values
    assert values["finetuned_accuracy"].mean == found["after"]["accuracy"]
    purposes = {e["purpose"] for e in lines(tmp_path / "run") if e["verb"] == "finetune"}
    assert purposes == {"evaluate"}


def lines(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "wire.jsonl").read_text().splitlines()]


def test_a_plan_has_it(hub: Path) -> None:
    fed = federation(hub, *WORDS)
    hold(fed)
    plan = predict(fed.config, texts_of(fed.config, fed.server, fed.clients))
    looks = [e for e in fed.fleet.ledger.entries if e.purpose == "evaluate"]
    total = to_dict(plan)["total"]["evaluate"]
    assert total["bytes"] == sum(entry.bytes for entry in looks)
    assert total["flops"] == pytest.approx(sum(entry.flops or 0 for entry in looks))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("framework=split", WHERE), "could not go on with it alone"),
        (("framework=local_only", WHERE), "models of their own already"),
        (("framework={name: kd, direction: client}", WHERE), "models of their own already"),
        (("framework.local=[head]", WHERE), "models of their own already"),
        (("framework=fedkseed", WHERE), "need not be able to train it"),
        (("framework=zero_shot", WHERE), "nothing trains"),
        ((), "none is held back for that"),
    ],
)
def test_nothing_is_fine_tuned_where_there_is_no_end(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        experiment(parse_overrides([*words, "finetune.local_steps=5"]))


def test_tensors_that_are_not_there_are_named(hub: Path) -> None:
    with pytest.raises(UserError, match="no tensor that trains has such a name"):
        federation(hub, WHERE, "finetune={local_steps: 5, tensors: [haed]}")
    with pytest.raises(UserError, match="so nothing moves"):
        experiment_config(hub, "finetune.tensors=[lora_B]")
