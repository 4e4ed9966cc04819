"""One client of a federation sends what it should not: it neither ruins the run nor stalls it.

Its numbers are finite, so that nothing is wrong with the message.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tiny import experiment_config
from trillium.experiment.folder import RunFolder
from trillium.experiment.run import Experiment, build
from trillium.federation.failed import RoundFailed
from trillium.federation.means import Contribution
from trillium.federation.server import Server
from trillium.frameworks.fedllm.aggregators.geometric_median import GeometricMedian
from trillium.frameworks.fedllm.protocol import FedLLM
from trillium.wire.message import Message, scalar

BAD = "client-1"
Change = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]


def larger(kind: str, factor: float) -> Change:
    """Return what multiplies the tensors of a kind."""
    return lambda sent: {n: t * factor if n.startswith(kind) else t for n, t in sent.items()}


def says(name: str, value: float) -> Change:
    """Return what claims another number."""
    return lambda sent: {**sent, f"control/{name}": scalar(value)}


def hostile(
    hub: Path, folder: RunFolder, verb: str, change: Change, *words: str, since: int = 2
) -> Experiment:
    """Build a federation in which one client changes its answers to a verb from a round on."""
    built = build(experiment_config(hub, *words), folder)
    lies(built, verb, change, since)
    return built


def lies(built: Experiment, verb: str, change: Change, since: int = 2) -> None:
    """Let the client change its answers to a verb."""
    client = next(c for c in built.clients if c.name == BAD)
    own = client.verbs[verb]

    def changed(asked: Any, message: Message) -> Message:
        reply = own(asked, message).opened()
        if asked.round < since:
            return reply
        made = change({n: labels.records for n, labels in reply.encoded.items()})
        encoded = {n: replace(labels, records=made[n]) for n, labels in reply.encoded.items()}
        return replace(reply, tensors=change(reply.tensors), encoded=encoded, previewed={})

    client.verbs = {**client.verbs, verb: changed}


LAX = ("fleet={min_replies: 1, on_failure: skip}", "rounds=4")
REFUSED = {
    "update": ("train", larger("parameters", 1e6), "fedllm", "have the norm"),
    "weight": ("train", says("weight", 1e300), "fedllm", "a weight of 1e+300"),
    "weight of more": ("train", says("weight", 1000.0), "fedllm", "is agreed"),
    "client's blocks": ("finish", larger("parameters", 3e3), "split", "have the norm"),
    "steps": ("begin", says("num_steps", 1e6), "split", "steps, at most"),
    "norm": ("backward", says("squared_norm", 1e308), "split", "a squared norm above"),
    "opinion": ("teach", larger("logits", 1e30), "kd", "no log-probability"),
    "teacher": ("teach", says("weight", 1e300), "kd", "a weight of 1e+300"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_was_not_agreed_is_refused_and_its_sender_is_missing(
    hub: Path, tmp_path: Path, uncounted: None, what: str
) -> None:
    verb, change, framework, why = REFUSED[what]
    words = (f"framework={framework}", *LAX)
    built = hostile(hub, RunFolder(tmp_path / "run", "run"), verb, change, *words)
    lines = built.run()
    assert [line["round"] for line in lines] == [0, 1, 2, 3, 4]
    for line in lines[2:]:
        assert [*line["missing"]] == [BAD]
        assert why in line["missing"][BAD]
        assert "skipped" not in line
    assert lines[-1]["loss"] < 2 * lines[0]["loss"]


def test_a_round_that_ruins_the_model_is_undone_and_names_who_did_it(
    hub: Path, tmp_path: Path, uncounted: None
) -> None:
    change = larger("parameters", 3e3)
    words = ("framework=fedllm", "framework.aggregator=mean")
    built = hostile(hub, RunFolder(tmp_path / "run", "run"), "train", change, *words, *LAX)
    lines = built.run()
    assert [bool(line.get("skipped")) for line in lines] == [False, False, True, False, False]
    assert lines[2]["loss"] == lines[1]["loss"]  # as it was before
    assert BAD in lines[2]["missing"]
    assert [*lines[3]["missing"]] == [*lines[4]["missing"]] == [BAD]
    assert "left out since round 2" in lines[4]["missing"][BAD]
    strict = RunFolder(tmp_path / "strict", "strict")
    built = hostile(hub, strict, "train", change, *words, "rounds=4")
    with pytest.raises(RoundFailed, match=f"it is undone: {BAD} stands out, as it sent"):
        built.run()
    written = [json.loads(line) for line in (strict.path / "metrics.jsonl").open()]
    assert [line["round"] for line in written] == [0, 1]


def sure_of_what_is_least(sent: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Be as sure as one can be of the class that is least likely."""
    if "logits/public" not in sent:
        return sent
    found = torch.full_like(sent["logits/public"], -80.0)
    return {"logits/public": found.scatter(-1, sent["logits/public"].argmin(-1, True), 0.0)}


# Words, lies by verb, and what is said of the client.
FAST = ("training.optimizer.lr=0.1", "framework.distill_epochs=5", "framework.average=logits")
SGD = ("training.optimizer=sgd", "training.max_grad_norm=null")
RUINED: dict[str, tuple[tuple[str, ...], dict[str, Change], str]] = {
    "activations": (("split",), {"forward": larger("activations", 1e200)}, "it sent activations"),
    "gradients": (
        ("split", "framework.shape=u", *SGD),
        {"finish_batch": larger("gradients", 1e150), "backward": says("squared_norm", 0.0)},
        "it sent gradients",
    ),
    "opinions": (("kd", *FAST), {"teach": sure_of_what_is_least}, "what it says is"),
    "opinions of clients": (
        ("kd", "framework.direction=client", *FAST),
        {"teach": sure_of_what_is_least},
        "what it says is",
    ),
}


@pytest.mark.parametrize("what", RUINED)
def test_a_round_of_kd_or_split_that_is_ruined_is_undone_and_names_who_did_it(
    hub: Path, tmp_path: Path, uncounted: None, what: str
) -> None:
    (framework, *words), told, said = RUINED[what]

    def ruined(name: str, *more: str) -> Experiment:
        settings = (f"framework={framework}", *words, *more)
        built = build(experiment_config(hub, *settings), RunFolder(tmp_path / name, name))
        for verb, change in told.items():
            lies(built, verb, change)
        return built

    lines = ruined("lax", *LAX).run()
    assert [bool(line.get("skipped")) for line in lines] == [False, False, True, False, False]
    assert [*lines[2]["missing"]] == [*lines[4]["missing"]] == [BAD]
    assert said in lines[2]["missing"][BAD]
    assert "left out since round 2" in lines[4]["missing"][BAD]
    assert lines[2]["loss"] == lines[1]["loss"]
    assert lines[4]["loss"] < 2 * lines[0]["loss"]
    with pytest.raises(RoundFailed, match=f"it is undone: {BAD} stands out, as {said}"):
        ruined("strict", "rounds=4").run()


@pytest.mark.parametrize("framework", ["kd", "local_only"])
def test_a_loss_that_one_client_claims_of_its_own_model_undoes_nothing(
    hub: Path, tmp_path: Path, uncounted: None, framework: str
) -> None:
    client = ("framework.direction=client",) if framework == "kd" else ()
    words = (f"framework={framework}", *client, "rounds=3")
    for what in ("loss", "round"):  # the latter is no measure of anybody's
        folder = RunFolder(tmp_path / what, what)
        lines = hostile(hub, folder, "evaluate_own", says(what, 1e30), *words).run()
        assert [line["round"] for line in lines] == [0, 1, 2, 3]
        assert not any(line.get("skipped") or line["missing"] for line in lines)


def test_a_state_that_is_not_finite_is_never_kept(
    hub: Path, tmp_path: Path, uncounted: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a client did to bring it about; here the server's step does."""
    folder = RunFolder(tmp_path / "run", "run")
    built = build(experiment_config(hub, "framework=fedllm", "rounds=3"), folder)
    step = FedLLM._step

    def broken(self: FedLLM, server: Server, current: Any, aggregated: Any) -> None:
        step(self, server, current, aggregated)
        if server.round == 2:
            next(iter(server.state.values())).data.fill_(torch.inf)

    monkeypatch.setattr(FedLLM, "_step", broken)
    with pytest.raises(RoundFailed, match="round 2: the new state is not finite; it is undone"):
        built.run()
    number, content = folder.checkpoints.newest("server") or (0, {})
    assert number == 1
    assert all(torch.isfinite(tensor).all() for tensor in content["state"].values())


def test_a_norm_that_is_claimed_does_not_keep_the_others_from_learning(
    hub: Path, tmp_path: Path, uncounted: None
) -> None:
    words = ("framework=split", "rounds=3", "training.max_grad_norm=1.0")
    made = hostile(
        hub, RunFolder(tmp_path / "a", "a"), "backward", says("squared_norm", 1e11), *words, since=1
    )
    first = {name: p.detach().clone() for name, p in made.server.state.items()}
    made.run()
    moved = sum(float((p - first[n]).abs().sum()) for n, p in made.server.state.items())
    assert moved > 1e-2


@pytest.mark.parametrize("value", [3e38, -3.4e38, 1e6])
@pytest.mark.parametrize("num", [2, 7])
def test_the_geometric_median_stands_the_largest_floats(value: float, num: int) -> None:
    draw = torch.Generator().manual_seed(1)
    honest = [
        Contribution(f"c{i}", 1.0, {"w": torch.randn(5, generator=draw) / 10 + 1})
        for i in range(num)
    ]
    bad = Contribution("z", 1.0, {"w": torch.full((5,), value)})
    found = GeometricMedian().aggregate([*honest, bad], {"w": torch.zeros(5)}, ()).tensors["w"]
    values = torch.stack([c.tensors["w"] for c in honest])
    assert ((found >= values.min(0).values - 1e-3) & (found <= values.max(0).values + 1e-3)).all()


def test_metrics_are_strict_json(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", "run")
    folder.metrics({"loss": float("nan"), "clients": {"a": {"loss": float("inf")}}, "all": [1.0]})

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    [line] = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    found = json.loads(line, parse_constant=refuse)
    assert found == {"loss": None, "clients": {"a": {"loss": None}}, "all": [1.0]}
