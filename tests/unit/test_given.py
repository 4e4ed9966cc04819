"""Recipes and settings, as they are given on the command line and in Python."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from pages import DOCS, FENCED
from trillium.config.comparison import comparison
from trillium.config.experiment import experiment, read_yaml, recipe_path
from trillium.config.given import Recipe, asked
from trillium.errors import UserError
from trillium.frameworks.fedllm.protocol import FedLLM


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (["adapter.r=4", "training.batch_size=8"], {}),
        ([{"adapter.r": 4, "training.batch_size": 8}], {}),
        ([{"adapter": {"r": 4}}], {"training": {"batch_size": 8}}),
        (["adapter.r=2"], {"adapter__r": 4, "training.batch_size": 8}),
    ],
)
def test_settings_of_every_form_say_the_same(settings: list[Any], named: dict[str, Any]) -> None:
    found = asked("run", settings, named).single()
    assert found["adapter"] == {"name": "lora", "r": 4, "alpha": 16}
    assert found["training"]["batch_size"] == 8


def test_a_recipe_may_be_a_name_a_file_a_mapping_or_a_configuration(tmp_path: Path) -> None:
    path = recipe_path("run")
    forms: list[Recipe] = ["run", str(path), path, read_yaml(path), experiment(read_yaml(path))]
    trees = [experiment(asked(form, [], {}).single()).tree() for form in forms]
    assert all(tree == trees[0] for tree in trees)


def test_the_first_word_may_be_a_setting() -> None:
    assert asked("rounds=2", ["seed=1"], {}).single() == {"rounds": 2, "seed": 1}


def test_names_of_model_and_data_lie_below_what_is_said_of_them() -> None:
    words = ["data.source.text=question"]
    tree = asked(None, words, {"data": "rows.csv.gz", "model": "gpt2", "seed": 1}).tree
    assert tree["data"]["source"] == {"name": "files", "train": "rows.csv.gz", "text": "question"}
    assert tree["model"] == {"id": "gpt2"}
    assert asked(None, [], {"model": {"dtype": "float64"}}).tree == {"model": {"dtype": "float64"}}


def test_values_may_be_objects_of_python(tmp_path: Path) -> None:
    named = {"framework": FedLLM(), "data__source": {"name": "files", "train": tmp_path / "a.csv"}}
    tree = asked(None, [], named).tree
    assert tree["framework"]["name"] == "fedllm"
    assert tree["data"]["source"]["train"] == str(tmp_path / "a.csv")
    assert asked(None, [], {"wire__up": ("int8",)}).tree == {"wire": {"up": ["int8"]}}


def test_values_of_a_sweep_are_arms_only_where_arms_are_made() -> None:
    assert asked(None, ["adapter.r=2,4"], {}, sweeps=True).sweeps == (("adapter.r", (2, 4)),)
    assert asked(None, ["model.id=a,b"], {}).tree == {"model": {"id": "a,b"}}


@pytest.mark.parametrize("named", [{"__r": 1}, {"adapter__": 1}, {"a..b": 2}])
def test_an_empty_part_of_a_path_is_refused(named: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="part of the path"):
        asked(None, [], named)


def test_a_word_without_a_value_is_no_setting() -> None:
    with pytest.raises(UserError, match="key=value"):
        asked("run", ["fast"], {})


def test_the_calls_of_the_page_on_python_are_valid() -> None:
    """Each is checked as it would be before anything runs; what comes back is not looked at."""
    calls: list[str] = []

    def run(recipe: Any = None, *settings: Any, seeds: Any = None, **named: Any) -> MagicMock:
        experiment(asked(recipe, settings, named).single())
        calls.append("run")
        return MagicMock()

    def compare(
        recipe: Any, *settings: Any, seeds: Any = None, only: Any = (), **named: Any
    ) -> MagicMock:
        found = asked(recipe, settings, named, sweeps=True)
        assert found.recipe is not None
        assert comparison(found.recipe, found.tree, only, found.sweeps).experiments()
        calls.append("compare")
        return MagicMock()

    names: dict[str, Any] = {}
    for _, body in FENCED.findall((DOCS / "python.md").read_text(encoding="utf-8")):
        source = body.replace("import trillium as tr", "")
        names["tr"] = SimpleNamespace(run=run, compare=compare)
        exec(compile(source, "python.md", "exec"), names)
    assert calls.count("run") == 6
    assert calls.count("compare") == 2
