"""The JSON Schema of recipes: shipped as it is made, it takes every recipe, and no wrong key."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from pages import ROOT
from trillium.cli.app import app
from trillium.component import known
from trillium.config.experiment import experiment, read_yaml, recipe_path, recipes
from trillium.config.schema import HINT, SHIPPED, as_text, recipe_schema
from trillium.frameworks.fedllm.aggregators import Aggregator
from trillium.wire.codecs import Codec

SCHEMA = json.loads(SHIPPED.read_text(encoding="utf-8"))
VALID = Draft202012Validator(SCHEMA)
FILES = sorted([*map(recipe_path, recipes()), *ROOT.glob("benchmarks/*.yaml")])


def test_the_shipped_schema_is_what_the_command_makes() -> None:
    shown = CliRunner().invoke(app, ["schema"])
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.stdout) == SCHEMA, f"Run: trillium schema > {SHIPPED}"
    assert SHIPPED.read_text(encoding="utf-8") == as_text(recipe_schema())
    Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_recipes_are_valid_until_a_key_is_wrong(path: Path) -> None:
    tree = read_yaml(path)
    assert not [*VALID.iter_errors(tree)]
    for place in mappings(tree):
        wrong = copy.deepcopy(tree)
        at(wrong, place)["no_such_key"] = 1
        assert not VALID.is_valid(wrong), place


FREE = ("arms", "tiers", "grid", "chosen", "lr_factors")  # own labels or options


def mappings(tree: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where settings stand that a recipe may not invent."""
    if "grid" in place or "chosen" in place:
        return []
    found = [place] if isinstance(tree, dict) and place[-1:] not in [(key,) for key in FREE] else []
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        if isinstance(value, dict | list):
            found += mappings(value, (*place, key))
    return found


def at(tree: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        tree = tree[key]
    return tree


@pytest.mark.parametrize("path", [*map(recipe_path, recipes())], ids=lambda path: path.stem)
def test_the_first_line_of_a_recipe_leads_to_the_schema(path: Path) -> None:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith(HINT)
    assert (path.parent / first.removeprefix(HINT)).resolve() == SHIPPED.resolve()


def test_a_new_recipe_leads_to_the_schema(tmp_path: Path) -> None:
    target = tmp_path / "mine.yaml"
    assert CliRunner().invoke(app, ["new", "run", "--to", str(target)]).exit_code == 0
    first = target.read_text(encoding="utf-8").splitlines()[0]
    assert Path(first.removeprefix(HINT)).samefile(SHIPPED)
    assert read_yaml(target) == read_yaml(recipe_path("run"))
    assert all(not advice.startswith("yaml-") for advice in recipes().values())


def test_every_default_and_every_member_is_valid() -> None:
    assert not [*VALID.iter_errors(experiment({}).tree())]
    for kind, key in ((Aggregator, "aggregator"),):
        for name, member in known(kind).items():
            for form in (name, member().to_config(), {"name": name}):
                assert VALID.is_valid({"framework": {"name": "fedllm", key: form}}), form


@pytest.mark.parametrize(
    "settings",
    [
        "framework: split",
        "framework: {cut: 2}",
        "framework: {name: fedllm, aggregator: {trim: 0.1}}",
        "adapter: {from: folder}",
        "wire: {up: [int8, {name: cast, dtype: float16}]}",
        "tiers: {a: {clients: [client-0], adapter: {r: 2}, up: null}}",
        "arms: {a: {framework: kd}, b: null}\nseeds: [1, 2]\ngrid: {adapter.r: [1, 2]}",
        "training: {optimizer: {name: sgd, lr: 1.0e-2, momentum: 0.9}, max_grad_norm: null}",
        "training: {optimizer: sgd}",
        "plan: {client: {link: {up: 10Mbit}}}",
    ],
)
def test_what_may_be_written_is_valid(settings: str) -> None:
    assert not [*VALID.iter_errors(yaml.safe_load(settings))]


@pytest.mark.parametrize(
    "settings",
    [
        "rouns: 3",
        "rounds: 0",
        "rounds: many",
        "framework: fedlm",
        "framework: {name: kd, cut: 2}",
        "framework: {rank: 2}",
        "adapter: {rank: 2}",
        "adapter: {name: lora, rank: 2}",
        "wire: {up: int8}",
        "wire: {up: [{dtype: float16}]}",
        "arms: {a: {framework: kd, cut: 1}}",
        "tiers: {a: {client: [client-0]}}",
        "seeds: [1, 2]",
        "model: roberta-base",
        "training: {optimizer: {name: adamw, momentun: 0.9}}",
        "training: {optimizer: adamv}",
        "evaluation: {keep: first}",
    ],
)
def test_what_cannot_be_is_not_valid(settings: str) -> None:
    assert not VALID.is_valid(yaml.safe_load(settings))


def test_a_component_of_ones_own_is_in_what_the_command_makes(registered: None) -> None:
    class Mine(Codec, name="mine"):
        """Mine.

        Attributes:
            depth: how deep.
        """

        depth: int = 3

    made = recipe_schema()
    assert made["$defs"]["codec.mine"]["properties"]["depth"]["description"] == "How deep."
    own = {"wire": {"up": [{"name": "mine", "depth": 2}]}}
    assert Draft202012Validator(made).is_valid(own)
    assert not VALID.is_valid(own)
    assert Mine.name == "mine"
