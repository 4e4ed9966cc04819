"""Classes that nodes tell: what they say is bounded, is allowed by their policies, and is agreed on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

pytest.importorskip("flwr", reason="Flower is not installed (extra: deploy)")

from flwr.app import ConfigRecord, RecordDict

from deployed import lines_of
from tiny import experiment_config
from trillium.data.classes import LONGEST, MOST, agreed, check_told
from trillium.engines.labels import ask_labels, tell_labels
from trillium.engines.node_settings import NodeConfig
from trillium.engines.opening import Opening
from trillium.engines.policy import Forbidden
from trillium.engines.roster import Mail, Online, text_of
from trillium.engines.settings import Settings
from trillium.errors import UserError, shareable
from trillium.federation.parts import Lost


class Nodes:
    """Takes the place of Flower's mail: the nodes answer here."""

    def __init__(self, *nodes: NodeConfig) -> None:
        self._nodes = dict(enumerate(nodes))

    def nodes(self) -> dict[int, Online]:
        return {number: Online("", "t0") for number in self._nodes}

    def exchange(
        self, action: str, contents: Mapping[int, RecordDict], seconds: float
    ) -> Iterator[tuple[int, RecordDict | Lost]]:
        assert action == "labels"
        for number, content in contents.items():
            opening = Opening.decode(text_of(content, "opening", "opening"))
            try:
                yield number, tell_labels(self._nodes[number], opening)
            except (Forbidden, UserError) as error:
                closed = f"the node cannot take part: {shareable(error)}"
                yield number, RecordDict({"summary": ConfigRecord({"closed": closed})})


def opening(hub: Path, *words: str) -> Opening:
    return Opening("run", experiment_config(hub, *words).tree(), [], 0)


def node(folder: Path, name: str, labels: list[str], **more: Any) -> NodeConfig:
    rows = folder / f"{name}.jsonl"
    lines = [json.dumps({"text": f"secret {n}", "label": own}) for n, own in enumerate(labels)]
    rows.write_text("\n".join(lines), encoding="utf-8")
    return NodeConfig(name=name, data=rows, state=folder / name, **more)


def settings(min_nodes: int) -> Settings:
    found = SimpleNamespace(min_nodes=min_nodes, wait_seconds=0.5, deadline_seconds=5.0)
    return cast(Settings, found)


def asked(nodes: Nodes, told: Opening, least: int) -> dict[str, list[str]]:
    return ask_labels(cast(Mail, nodes), told, settings(least))


def test_each_node_says_its_classes_once(hub: Path, tmp_path: Path) -> None:
    nodes = Nodes(node(tmp_path, "a", ["10", "2", "2"]), node(tmp_path, "b", ["2", "7"]))
    sets = asked(nodes, opening(hub, "data.labels=union"), 2)
    assert sets == {"a": ["2", "10"], "b": ["2", "7"]}
    assert agreed(sets, "union") == ("2", "7", "10")
    with pytest.raises(UserError, match=r"data.labels=fixed: a, b lack classes that others have"):
        agreed(sets, "fixed")
    assert agreed({"a": ["x", "y"], "b": ["y", "x"]}, "fixed") == ("x", "y")
    [line] = lines_of(tmp_path / "a" / "log.jsonl")
    assert (line["verb"], line["refused"]) == ("labels", None)
    assert line["bytes_up"] > 0
    assert "secret" not in json.dumps(line)


def test_a_policy_lets_no_names_leave(hub: Path, tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text("labels = false\n", encoding="utf-8")
    own = node(tmp_path, "a", ["x", "y"], policy=policy)
    told = opening(hub, "data.labels=union")
    with pytest.raises(Forbidden, match="names of classes to leave"):
        tell_labels(own, told)
    [line] = lines_of(tmp_path / "a" / "log.jsonl")
    assert "names of classes" in line["refused"]
    assert line["bytes_up"] == 0
    with pytest.raises(UserError, match=r"min-nodes=2: 1 have said .* names of classes to leave"):
        asked(Nodes(own, node(tmp_path, "b", ["x", "z"])), told, 2)


@pytest.mark.parametrize("word", ["data.labels=[x, y, class 0, class 1, class 2]", "rounds=3"])
def test_a_recipe_that_does_not_ask_is_not_told(hub: Path, tmp_path: Path, word: str) -> None:
    with pytest.raises(Forbidden):
        tell_labels(node(tmp_path, "a", ["x", "y"]), opening(hub, word))


def test_names_that_are_no_names_stay(hub: Path, tmp_path: Path) -> None:
    """The server is told that rows cannot be read, and no word of them."""
    own = node(tmp_path, "a", ["x", "A patient said:\n" + "ten years ago " * 30])
    with pytest.raises(UserError, match="printable") as told:
        tell_labels(own, opening(hub, "data.labels=union"))
    assert "patient" not in str(told.value)
    assert "patient" not in shareable(told.value)
    with pytest.raises(UserError, match="0 have said") as why:
        asked(Nodes(own), opening(hub, "data.labels=union"), 1)
    assert "patient" not in str(why.value)


@pytest.mark.parametrize(
    "told", [[], "x", ["x" * (LONGEST + 1)], ["a\tb"], [""], [1], [f"{n}" for n in range(MOST + 1)]]
)
def test_a_server_takes_no_other_names(told: object) -> None:
    with pytest.raises(ValueError, match=r"may be told|printable"):
        check_told(told)


def test_nothing_hides_which_classes_a_client_has() -> None:
    from trillium.config.experiment import experiment, parse_overrides

    words = ["privacy={name: client, epsilon: 8}", "training.max_length=32", "data.labels=union"]
    with pytest.raises(UserError, match="which classes a client has would leave it in the open"):
        experiment(parse_overrides(words))
