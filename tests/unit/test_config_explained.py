"""What a recipe cannot hold is said in the words of whoever wrote it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from trillium.config.experiment import experiment, found_recipe, parse_overrides, read_yaml
from trillium.errors import UserError

OF_PYDANTIC = (
    "valid ",
    "instance",
    "input",
    "tuple[",
    "function-",
    "unable to parse",
    "dictionary",
)


@pytest.mark.parametrize("value", [3, "text", [1, "a"], {"a": 1}, None, 1.5, True])
@pytest.mark.parametrize(
    "path",
    ["rounds", "model", "model.id", "adapter.r", "adapter.target_modules", "wire.up", "fleet",
     "tiers", "tiers.a", "training.optimizer", "training.optimizer.lr", "evaluation", "server",
     "data", "data.source", "framework"],
)  # fmt: skip
def test_no_internals(path: str, value: object) -> None:
    tree = value
    for key in reversed(path.split(".")):
        tree = {key: tree}
    assert isinstance(tree, dict)
    try:
        experiment(tree)
    except UserError as error:
        said = f"{error.why} {error.instead} {error.given.partition('=')[0]}".lower()
        assert not [word for word in OF_PYDANTIC if re.search(rf"\b{re.escape(word)}", said)], said


def test_a_key_that_stands_twice(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("rounds: 2\nmodel:\n  id: a\n  dtype: float32\n  id: b\n", encoding="utf-8")
    with pytest.raises(UserError, match="the key 'id' stands there twice, in lines 3 and 5"):
        read_yaml(recipe)
    recipe.write_text("a: &one {x: 1}\nb: {<<: *one, x: 2}\n", encoding="utf-8")
    assert read_yaml(recipe) == {"a": {"x": 1}, "b": {"x": 2}}


def test_json_lines_by_another_name(tmp_path: Path) -> None:
    from trillium.data.sources.files import read_table

    (tmp_path / "rows.ndjson").write_text('{"text": "a"}\n{"text": "b"}\n', encoding="utf-8")
    assert len(read_table(tmp_path / "rows.ndjson")) == 2


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("data.source=rows.csv", "Write --data rows.csv, or data.source={name: files, train: rows"),
        ("data.source={name: rows.jsonl.gz}", "Write --data rows.jsonl.gz"),
        ("data.source=ag_news", "Write --data ag_news, or data.source={name: hub, path: ag_news}"),
        ("data.source=file", "Did you mean 'files'?"),
        ("data.source={name: files, path: rows.csv}", "data.source.path with data.source=hub"),
        ("data.source={name: files, file: rows.csv}", "Did you mean 'train'?"),
        ("data.source.file=rows.csv", "data.source.train with data.source=files"),
    ],
)
def test_rows_that_are_named_as_people_name_them(words: str, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        experiment(parse_overrides([words]))
    assert expected in caught.value.instead


def test_rows_are_no_recipe() -> None:
    with pytest.raises(UserError, match="a file of rows, not a recipe") as caught:
        found_recipe("rows.csv")
    assert caught.value.instead == "Write --data rows.csv"
