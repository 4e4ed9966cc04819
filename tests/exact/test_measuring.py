"""Measuring at the clients: the same figures as the server's on the same rows, and no row goes up."""

from __future__ import annotations

import statistics
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from papers import hold
from tiny import Recorder, experiment_config, federation, run_rounds
from trillium.config.experiment import experiment, merge, parse_overrides
from trillium.errors import UserError
from trillium.experiment.folder import RunFolder
from trillium.experiment.run import Experiment, build
from trillium.federation.client import Client
from trillium.plan.predict import predict
from trillium.plan.result import texts_of, to_dict
from trillium.report.read import read_run
from trillium.report.summary import summarise
from trillium.report.write import write_report
from trillium.tasks import Example
from trillium.wire.message import Message, decode

pytestmark = pytest.mark.usefixtures("uncounted")

BOTH = "evaluation.where=both"
# What is no sum is a mean over the clients' own, by their rows.
FOUR = ("training.batch_size=4",)  # so that there is more than one step
AVERAGED = {"spearman"}
CUTS = "tiers={small: {clients: [client-0], cut: 1}}"
FRAMEWORKS: dict[str, tuple[str, ...]] = {
    "fedllm": ("framework=fedllm",),
    "fedllm, folds": ("framework.aggregator=stack",),
    "fedllm, codecs": ("framework=fedllm", "wire={up: [int8], down: [int8]}"),
    "fedkseed": ("framework=fedkseed",),
    "kd": ("framework=kd",),
    "split": ("framework=split",),
    "split, u": ("framework={name: split, shape: u}",),
    "split, u, tail, cuts": ("framework={name: split, shape: u, train: server, cut: 2}", CUTS),
    "split, cached": ("framework={name: split, train: server}",),
    "zero_shot": ("framework=zero_shot",),
    "centralised": ("framework=centralised",),
}
TASKS = (*("multi_label", "regression", "token_classification", "causal_lm", "preference"),)


def same_rows(fed: Experiment) -> None:
    """Let the server measure on all rows that the clients hold back."""
    held = [example for client in fed.clients for example in client.test]
    fed.server.test = [replace(example, index=n) for n, example in enumerate(held)]


def measured(fed: Experiment) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the clients say together, and what the server says of the same rows."""
    same_rows(fed)
    framework, evaluation = fed.config.framework, fed.config.evaluation
    at_clients = evaluation.model_copy(update={"where": "clients"})
    told = framework.evaluate(fed.server, fed.fleet, at_clients, False)
    return told, fed.server.evaluate(fed.server.state, evaluation.batch_tokens)


def hold_equal(fed: Experiment) -> None:
    run_rounds(fed, 2 if fed.config.framework.trains else 0)
    told, own = measured(fed)
    clients = told.pop("clients")
    assert set(clients) == {client.name for client in fed.clients}
    assert told["num_examples"] == sum(found["num_examples"] for found in clients.values())
    assert own["num_examples"] == told["num_examples"]
    assert told.keys() == own.keys()
    for name in own.keys() - AVERAGED:
        assert told[name] == pytest.approx(own[name], rel=1e-9), name
    for name in own.keys() & AVERAGED:
        weighted = [found[name] * found["num_examples"] for found in clients.values()]
        assert told[name] == pytest.approx(sum(weighted) / own["num_examples"], rel=1e-9)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_what_clients_measure_together_is_what_the_server_would(hub: Path, framework: str) -> None:
    hold_equal(federation(hub, BOTH, *FRAMEWORKS[framework]))


@pytest.mark.parametrize("framework", ["fedllm", "split", "split, u"])
@pytest.mark.parametrize("task", TASKS)
def test_measures_of_every_task_add_up(hub: Path, framework: str, task: str) -> None:
    """Those that do not are means, weighted by rows."""
    words = FRAMEWORKS[framework]
    if task == "preference" and framework != "fedllm":
        with pytest.raises(UserError, match=r"evaluation.where=both with task=preference"):
            experiment_config(hub, BOTH, *words, task=task)
        return
    hold_equal(federation(hub, BOTH, *words, task=task))


@pytest.mark.parametrize("framework", ["fedllm", "fedkseed", "kd", "split", "split, u"])
def test_counts_and_sums_go_up_and_nothing_else(hub: Path, framework: str) -> None:
    """Across a cut, what crosses in training: activations, and in two parts the labels."""
    fed = federation(hub, "evaluation.where=clients", "rounds=1", *FRAMEWORKS[framework])
    log = Recorder(fed)
    fed.run()
    expected = {"measures", "control"}
    if framework == "split":
        expected = {"activations", "labels", "control"}
    if framework == "split, u":
        expected |= {"activations"}
    looks = {entry.verb for entry in fed.fleet.ledger.entries if entry.purpose == "evaluate"}
    assert looks == {"measure"} | ({"measure_on"} if "split" in framework else set())
    kinds = set()
    for _, _, reply in log.log:
        message = decode(reply)
        if message.verb in looks:
            kinds |= {name.split("/")[0] for name in message.tensors}
            sums = message.group("measures")
            rows = sums.pop("num_examples", None)
            assert all(tensor.numel() in (1, 3) for tensor in sums.values()), "3 classes"
            assert rows is None or float(rows) >= 1
    assert kinds == expected


def test_rows_that_are_held_back_are_not_trained_on(hub: Path) -> None:
    def texts(fed: Experiment) -> list[tuple[set[tuple[int, ...]], set[tuple[int, ...]]]]:
        def of(examples: list[Example]) -> set[tuple[int, ...]]:
            return {tuple(example.input_ids.tolist()) for example in examples}

        return [(of(client.examples), of(client.test)) for client in fed.clients]

    plain = texts(federation(hub))
    built = federation(hub, "evaluation={where: clients, held_back: 0.4}", "data.test_fraction=0.3")
    apart, again = texts(built), texts(federation(hub, BOTH, "evaluation.held_back=0.4"))
    for (own, held), (whole, _), (same, same_held) in zip(apart, plain, again, strict=True):
        assert own | held == whole
        assert not own & held
        assert len(held) == pytest.approx(0.4 * len(whole), abs=1.01)
        assert (own, held) == (same, same_held), "it does not depend on who else measures"
    other = texts(federation(hub, BOTH, "evaluation.held_back=0.4", "data.split_seed=7"))
    assert other[0][1] != apart[0][1]
    said = built.data.summary()["clients"]["client-0"]
    assert (said["held_out"], said["texts"]) == (len(apart[0][1]), len(apart[0][0]))


def test_a_server_without_rows_runs_to_its_report(hub: Path, tmp_path: Path) -> None:
    config = experiment_config(
        hub, "evaluation={where: clients, keep: best}", "rounds=3", "data.test_fraction=0.0"
    )
    built = build(config, RunFolder(tmp_path / "run", "run"))
    assert len(built.data.test) == 0
    history = built.run()
    best = max(history[1:], key=lambda line: (line["accuracy"], -line["round"]))
    assert read_run(tmp_path / "run").kept_round == best["round"]
    write_report(tmp_path / "run")
    values = summarise([read_run(tmp_path / "run")])[0].values
    each = [own["accuracy"] for own in best["clients"].values()]
    assert values["accuracy"].mean == best["accuracy"]
    assert values["clients_accuracy_min"].mean == min(each)
    assert values["clients_accuracy_sd"].mean == pytest.approx(statistics.stdev(each))


@pytest.mark.parametrize(
    "words",
    [
        *(FRAMEWORKS[name] for name in ("fedllm", "fedllm, folds", "kd", "split", "split, u")),
        ("framework.direction=client", "framework=kd"),
        ("framework.local=[head]", "fleet.clients_per_round=2"),
    ],
    ids=str,
)
def test_a_plan_has_what_measuring_takes(
    hub: Path, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Message by message, and in sum, with what clients compute for it."""
    monkeypatch.undo()  # here costs are counted
    fed = federation(hub, "evaluation={where: clients, every: 2}", "rounds=3", *FOUR, *words)
    plan = predict(fed.config, texts_of(fed.config, fed.server, fed.clients))
    hold(fed)
    looks = [e for e in fed.fleet.ledger.entries if e.purpose == "evaluate"]
    total = to_dict(plan)["total"]["evaluate"]
    assert total["bytes"] == sum(entry.bytes for entry in looks)
    assert total["messages"] == len(looks)
    assert total["flops"] == pytest.approx(sum(entry.flops or 0 for entry in looks))
    assert total["flops"] > 0


REFUSED = {
    "privacy={name: client, epsilon: 8}": "the epsilon that is told would not cover",
    "privacy={name: example, epsilon: 8, population: 90}": "the epsilon that is told would not cover",
    "sums=masked": "would be seen one by one",
    "task={name: causal_lm, generate: 4}": "how long a client would write",
}


@pytest.mark.parametrize("word", REFUSED)
def test_what_nothing_covers_does_not_leave(word: str) -> None:
    with pytest.raises(UserError, match=REFUSED[word]) as told:
        experiment(parse_overrides([word, "evaluation.where=clients", "training.max_length=32"]))
    assert told.value.given.startswith("evaluation.where=clients with ")
    assert told.value.instead


def test_a_model_that_fits_no_client_is_not_measured_there() -> None:
    tree = parse_overrides(["framework=kd", BOTH, "server.adapter.r=2"])
    with pytest.raises(UserError, match="does not fit into those of the clients"):
        experiment(tree)
    experiment(merge(tree, {"framework": {"direction": "client"}}))


def test_no_share_is_held_back_for_nothing() -> None:
    with pytest.raises(UserError, match="measures on the server's rows"):
        experiment(parse_overrides(["evaluation.held_back=0.3"]))
    with pytest.raises(UserError, match="no rows to measure on"):
        experiment(parse_overrides(["data.test_fraction=0"]))


LIES: dict[str, tuple[str, Tensor]] = {
    "another name": ("hit", torch.ones(3, dtype=torch.float64)),
    "another size": ("hits", torch.ones(4, dtype=torch.float64)),
    "no number": ("loss", torch.tensor(torch.nan, dtype=torch.float64)),
    "part of a row": ("num_examples", torch.tensor(1.5, dtype=torch.float64)),
    "more than there can be": ("num_examples", torch.tensor(1e15, dtype=torch.float64)),
    "more than it holds back": ("num_examples", torch.tensor(99, dtype=torch.float64)),
    "hits below none": ("hits", torch.tensor([9, 9, -9], dtype=torch.float64)),
    "a loss below none": ("loss", torch.tensor(-1, dtype=torch.float64)),
}


@pytest.mark.parametrize("lie", LIES)
def test_measures_that_cannot_be_are_left_out(hub: Path, lie: str) -> None:
    fed = federation(hub, "evaluation.where=clients", "fleet.min_replies=1", "rounds=1")
    client, own = fed.clients[1], fed.clients[1].verbs["measure"]
    name, value = LIES[lie]

    def lies(me: Client, message: Message) -> Message:
        reply = own(me, message)
        return replace(reply, tensors={**reply.tensors, f"measures/{name}": value})

    client.verbs = {**client.verbs, "measure": lies}
    for line in fed.run():
        assert set(line["clients"]) == {"client-0", "client-2"}
        assert not line["missing"], "it was in the round"


@pytest.mark.parametrize("framework", ["split", "split, u"])
def test_who_never_stops_measuring_is_left_out(hub: Path, framework: str) -> None:
    fed = federation(hub, "evaluation.where=clients", "fleet.min_replies=1", *FRAMEWORKS[framework])
    bad, honest = fed.clients[1], fed.clients[1].verbs["measure_on"]

    def endless(me: Client, message: Message) -> Message:
        me.scratch["measuring"].chunks = repeat(me.test)
        return honest(me, message)

    bad.verbs = {**bad.verbs, "measure_on": endless}
    told, _ = measured(fed)
    assert set(told["clients"]) == {"client-0", "client-2"}
    num, why = len(bad.test), fed.fleet.missing["client-1"]
    assert why.startswith(f"measure_on: {2 * num} rows and no end, where it holds {num} back")
    asked = [entry for entry in fed.fleet.ledger.entries if entry.client == "client-1"]
    assert [entry.verb for entry in asked] == [*["measure"] * 2, *["measure_on"] * 2]


def test_without_anybody_who_measures_the_run_says_so(hub: Path) -> None:
    fed = federation(hub, "evaluation.where=clients")
    for client in fed.clients:
        client.test = []
    with pytest.raises(UserError, match="no client has answered with measures"):
        fed.run()
