"""Training that goes on from an adapter: whose head it has, and where its base is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import load_peft_weights

from checkpoints import checkpoint
from tiny import experiment_config
from trillium.config.experiment import acting, experiment, merge, parse_overrides, read_yaml
from trillium.errors import UserError
from trillium.experiment.folder import RunFolder
from trillium.experiment.run import Experiment, build
from trillium.experiment.trained import evaluate_run
from trillium.models.adapters.lora import Lora
from trillium.models.heads import head_layer

REAL = ("model.random_weights=false", "model.dtype=float32")


@pytest.fixture
def classifier(hub: Path, tmp_path: Path) -> Path:
    """An adapter of a classifier of three classes, with its head, as a run has exported it."""
    base = checkpoint(hub, "bert", "SEQ_CLS")
    run = build(
        experiment_config(hub, f"model.id={base}", *REAL, "rounds=1", model="bert"),
        RunFolder(tmp_path / "first", "first"),
    )
    run.run()
    return tmp_path / "first" / "adapter"


def onward(hub: Path, adapter: Path, *words: str) -> Experiment:
    tree = experiment_config(hub, model="bert").tree()
    del tree["adapter"], tree["model"]
    own = parse_overrides([f"model.id={adapter}", "model.device=cpu", *words])
    return build(experiment(acting(merge(tree, own), own)[0]))


def last_layer(run: Experiment) -> torch.Tensor:
    return head_layer(run.model.mount(run.model.state()))[1].weight.detach()


def test_the_head_of_an_adapter_keeps_its_classes_by_name(hub: Path, classifier: Path) -> None:
    theirs = load_peft_weights(str(classifier), device="cpu")["base_model.model.classifier.weight"]
    path = classifier / "config.json"
    names = ["class 2", "class 0", "class 1"]
    about = {**json.loads(path.read_text()), "id2label": dict(enumerate(names))}
    path.write_text(json.dumps(about))
    run = onward(hub, classifier)
    assert run.data.labels == tuple(names)
    assert torch.equal(last_layer(run), theirs)
    assert run.data.own_head
    assert "of the adapter, which has these classes by name" in run.data.head


def test_the_head_of_an_adapter_of_other_classes_is_new(hub: Path, classifier: Path) -> None:
    theirs = load_peft_weights(str(classifier), device="cpu")["base_model.model.classifier.weight"]
    path = classifier / "config.json"
    for names in (["x", "y", "z"], ["class 0", "class 1", "other"]):
        about = {**json.loads(path.read_text()), "id2label": dict(enumerate(names))}
        path.write_text(json.dumps(about))
        run = onward(hub, classifier)
        assert not any(torch.equal(row, own) for row in theirs for own in last_layer(run))
        assert "new: the adapter's classes are others" in run.data.head
        assert run.run()


def test_an_adapter_of_more_classes_serves_fewer_and_one_of_fewer_is_given_a_new_head(
    hub: Path, classifier: Path, tmp_path: Path
) -> None:
    theirs = load_peft_weights(str(classifier), device="cpu")["base_model.model.classifier.weight"]
    lines = (hub / "classification.jsonl").read_text().splitlines()
    few, more = tmp_path / "few.jsonl", tmp_path / "more.jsonl"
    few.write_text("\n".join(line for line in lines if "class 1" not in line))
    more.write_text("\n".join([*lines, *(line.replace("class 1", "class 3") for line in lines)]))
    run = onward(hub, classifier, f"data.source.train={few}")
    assert torch.equal(last_layer(run), theirs[[0, 2]])
    run = onward(hub, classifier, f"data.source.train={more}")
    assert last_layer(run).shape[0] == 4
    assert "the adapter's classes are others" in run.data.head


def test_classes_that_an_adapter_does_not_name_are_taken_in_order_and_that_is_said(
    hub: Path, classifier: Path
) -> None:
    theirs = load_peft_weights(str(classifier), device="cpu")["base_model.model.classifier.weight"]
    (classifier / "config.json").unlink()
    run = onward(hub, classifier)
    assert torch.equal(last_layer(run), theirs)
    assert "does not name its classes" in run.data.head


def test_a_run_that_went_on_from_an_adapter_stands_without_it(
    hub: Path, classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(classifier.parent)
    tree = experiment_config(hub, "rounds=1", model="bert").tree()
    base = checkpoint(hub, "bert", "SEQ_CLS")
    tree |= {"adapter": {"name": "lora", "from": "adapter"}, "model": {"id": str(base)}}
    run = build(experiment(tree), RunFolder(tmp_path / "second", "second"))
    expected = run.run()[-1]["loss"]
    monkeypatch.chdir(tmp_path)
    written = experiment(read_yaml(tmp_path / "second" / "config.yaml")).adapter
    assert written.goes_on_from == str(classifier)
    shutil.rmtree(classifier)
    assert evaluate_run(tmp_path / "second", {})["loss"] == pytest.approx(expected)


def test_tiers_go_on_from_the_adapter_of_the_run_beside_its_base_alone(
    hub: Path, classifier: Path
) -> None:
    other = checkpoint(hub, "distilbert", "SEQ_CLS")
    words = ["framework=kd", "data.public_size=12", "tiers.a.clients=[client-0]"]
    run = onward(hub, classifier, *words, f"tiers.a.model.id={other}")
    assert run.config.of("client-0").adapter == Lora()
    assert run.config.of("client-1").adapter.goes_on_from == str(classifier)
    assert experiment(run.config.tree()) == run.config
    with pytest.raises(UserError, match=r"adapter\.r=4 with the adapter in .*it has r=3"):
        onward(hub, classifier, *words, "tiers.a.adapter.r=4")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["adapter.init=orthonormal"], "no values are drawn"),
        (["model.random_weights=true"], "a change of the weights of its base"),
    ],
)
def test_what_an_adapter_leaves_without_effect_is_refused(
    hub: Path, classifier: Path, words: list[str], why: str
) -> None:
    with pytest.raises(UserError, match=why):
        onward(hub, classifier, *words)


@pytest.mark.parametrize("base", [None, "/nowhere/base", "../nowhere"])
def test_an_adapter_whose_base_is_not_there_is_refused_by_name(
    hub: Path, classifier: Path, base: str | None
) -> None:
    path = classifier / "adapter_config.json"
    found = {**json.loads(path.read_text()), "base_model_name_or_path": base}
    path.write_text(json.dumps(found))
    with pytest.raises(UserError, match="it is an adapter") as error:
        onward(hub, classifier)
    assert f"adapter.from={classifier}" in error.value.instead
