"""What the server of a deployment has: its rows, as far as it has any, and the names of the classes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tiny import experiment_config
from trillium.config.experiment import ExperimentConfig, experiment, merge, parse_overrides
from trillium.data.deployed import read_server_data, write_server_data
from trillium.data.load import load_data
from trillium.errors import UserError

CLIENTS = "evaluation.where=clients"


def server_data(config: ExperimentConfig) -> object:
    pytest.importorskip("flwr", reason="Flower is not installed (extra: deploy)")
    from trillium.deploy.prepare import server_data as found

    return found(config, clients=False)


def nodes(*words: str) -> ExperimentConfig:
    source = {"data": {"source": {"name": "nodes", "text": "question", "label": "intent"}}}
    return experiment(merge(parse_overrides(words), source))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("data.labels=union",), "the server has no rows to measure on"),
        ((CLIENTS,), "the server has no rows that would name the classes"),
        ((CLIENTS, "data.labels=[a, b]", "framework=kd"), "no rows to make it of"),
    ],
)
def test_a_server_without_rows_is_refused_what_takes_some(
    words: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        server_data(nodes(*words))


@pytest.mark.parametrize(
    "words",
    [
        (CLIENTS, "data.labels=[a, b]"),
        (CLIENTS, "data.labels=union"),
        (CLIENTS, "data.labels=[a, b]", "framework=kd", "data.public=words"),
        (CLIENTS, "task=causal_lm"),
    ],
)
def test_a_server_without_rows_writes_names_alone(tmp_path: Path, words: tuple[str, ...]) -> None:
    config = nodes(*words)
    write_server_data(tmp_path, server_data(config))  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["labels.json"]
    named = config.data.labels if isinstance(config.data.labels, tuple) else ()
    assert tuple(json.loads((tmp_path / "labels.json").read_text())) == named
    found = read_server_data(tmp_path, config.task.data_form, measures=False)
    assert (len(found.test), len(found.public), found.labels) == (0, 0, named)
    assert found.in_order(["a", "b", "c"]).labels == ("a", "b", "c")


def test_a_simulation_has_no_nodes() -> None:
    config = nodes(CLIENTS, "data.labels=union")
    with pytest.raises(UserError, match="its rows are with the nodes of a deployment"):
        load_data(config.data, config.task.data_form, 0)


def test_rows_of_a_server_are_public_and_nobody_elses(hub: Path) -> None:
    """Of its training rows none need be left for clients that are elsewhere."""
    words = ("framework=kd", CLIENTS, "data.test_fraction=0.0", "data.public_size=50")
    config = experiment_config(hub, *words, "data.num_clients=40")
    found = server_data(config)
    assert (len(found.public), len(found.test)) == (50, 0)  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="clients"):
        load_data(config.data, "classification", 0, 60)


def test_classes_are_named_or_those_of_all_clients(hub: Path) -> None:
    def labels(*words: str) -> tuple[str, ...]:
        config = experiment_config(hub, *words)
        return load_data(config.data, "classification", 0, 0).labels

    assert labels() == labels("data.labels=union") == ("class 0", "class 1", "class 2")
    assert labels("data.labels=fixed") == labels()
    named = "data.labels=[class 2, class 0, another, class 1]"
    assert labels(named) == ("class 2", "class 0", "another", "class 1")
    config = experiment_config(hub, named)
    data = load_data(config.data, "classification", 0, 0)
    text, label = data.clients["client-0"][0]["text"], data.clients["client-0"][0]["label"]
    assert data.labels[label] == f"class {text.split()[0].removeprefix('w')}"
    with pytest.raises(UserError, match="there are rows of class 2"):
        labels("data.labels=[class 0, class 1]")
    with pytest.raises(UserError, match=r"data.labels=fixed: client-0, client-1, client-2 lack"):
        labels("data.labels=fixed", "data.partition={name: shard, classes_per_client: 1}")
    with pytest.raises(UserError, match="each class has one name"):
        experiment(parse_overrides(["data.labels=[a, a]"]))
    with pytest.raises(UserError, match="it has no classes"):
        experiment(parse_overrides(["data.labels=union", "task=causal_lm"]))
