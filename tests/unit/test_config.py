"""The config tree: overrides, merging, and errors that say what to write instead."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from trillium.config.comparison import comparison
from trillium.config.experiment import (
    ExperimentConfig,
    experiment,
    merge,
    parse_overrides,
    read_yaml,
    recipe_path,
)
from trillium.errors import UserError, suggest


def config(*words: str) -> ExperimentConfig:
    return experiment(parse_overrides(words))


@pytest.mark.parametrize(
    ("words", "tree"),
    [
        (["a=1"], {"a": 1}),
        (["a.b.c=x"], {"a": {"b": {"c": "x"}}}),
        (["a.b=1", "a.c=2"], {"a": {"b": 1, "c": 2}}),
        (["a=1", "a=2"], {"a": 2}),
        (["a=[1, x]"], {"a": [1, "x"]}),
        (["a={name: x, r: 2}", "a.r=3"], {"a": {"name": "x", "r": 3}}),
        (["a=x", "a.r=3"], {"a": {"name": "x", "r": 3}}),
        (["a=null", "b=true"], {"a": None, "b": True}),
        (["a="], {"a": None}),
        (["a=b=c"], {"a": "b=c"}),
        (["a=1e-3", "b=3E5", "c=1e3x"], {"a": 1e-3, "b": 3e5, "c": "1e3x"}),
        ([], {}),
        (["data.source.separator=|"], {"data": {"source": {"separator": "|"}}}),
    ],
)
def test_overrides(words: list[str], tree: dict[str, Any]) -> None:
    assert parse_overrides(words) == tree


@pytest.mark.parametrize("word", ["rounds", "=3", "a..b=1", ".a=1", "a=[1", "a={b"])
def test_what_is_no_override_is_refused_in_three_parts(word: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_overrides([word])
    error = caught.value
    assert error.given == word
    assert error.why
    assert "Write" in error.instead or "Quote" in error.instead


@pytest.mark.parametrize(
    ("base", "over", "merged"),
    [
        ({"a": {"x": 1, "y": 2}}, {"a": {"x": 3}}, {"a": {"x": 3, "y": 2}}),
        ({"a": {"name": "m", "x": 1}}, {"a": {"x": 3}}, {"a": {"name": "m", "x": 3}}),
        ({"a": {"name": "m", "x": 1}}, {"a": {"name": "m", "y": 3}},
         {"a": {"name": "m", "x": 1, "y": 3}}),
        # Another component: options of the old one would make no sense.
        ({"a": {"name": "m", "x": 1}}, {"a": {"name": "n"}}, {"a": {"name": "n"}}),
        ({"a": {"name": "m", "x": 1}}, {"a": "n"}, {"a": "n"}),
        ({"a": {"name": "m", "x": 1}}, {"a": "m"}, {"a": {"name": "m", "x": 1}}),
        ({"a": "m"}, {"a": {"x": 1}}, {"a": {"name": "m", "x": 1}}),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
        ({"a": {"x": 1}}, {"a": None}, {"a": None}),
    ],
)  # fmt: skip
def test_merging(base: Any, over: Any, merged: Any) -> None:
    before = repr(base), repr(over)
    assert merge(base, over) == merged
    assert (repr(base), repr(over)) == before


def test_a_merged_tree_shares_nothing_with_its_sources() -> None:
    over = {"a": {"b": [1]}}
    merge({}, over)["a"]["b"].append(2)
    assert over == {"a": {"b": [1]}}


TREES = [
    (),
    ("framework=kd", "framework.temperature=3", "data.partition={name: dirichlet, alpha: 0.5}"),
    ("framework={name: split, shape: u, tail: 2}", "training.optimizer={name: sgd, momentum: 0.9}"),
    ("wire.up=[cast, {name: int8, kinds: [parameters]}]", "adapter=full", "task=causal_lm"),
    ("framework.server_optimizer=adam", "fleet.min_replies=2", "training.max_grad_norm=null"),
]


@pytest.mark.parametrize("words", TREES)
def test_the_resolved_tree_reads_back(words: tuple[str, ...]) -> None:
    found = config(*words)
    assert experiment(found.tree()) == found
    assert experiment(found.tree()).tree() == found.tree()


@pytest.mark.parametrize(
    ("word", "given", "instead"),
    [
        ("round=3", "round", "'rounds'"),
        ("training.batchsize=3", "training.batchsize", "'batch_size'"),
        ("framework=fedlm", "fedlm", "'fedllm'"),
        ("framework.agregator=mean", "agregator", "aggregator"),
        ("rounds=none", "rounds='none'", "Write a whole number"),
        ("rounds=0", "rounds=0", "at least 1"),
        ("training.optimizer=adamwx", "adamwx", "'adamw'"),
        ("wire.up=[kast]", "kast", "'cast'"),
        ("data.source=biltin", "biltin", "'builtin'"),
        ("framework={name: split, tail: 2}", "tail=2", "shape=u"),
        ("model.dtype=float8", "model.dtype='float8'", "Did you mean 'float64'?"),
    ],
)
def test_slips_are_explained_in_three_parts(word: str, given: str, instead: str) -> None:
    with pytest.raises(UserError) as caught:
        config(word)
    error = caught.value
    assert given in error.given
    assert error.why
    assert instead in error.instead
    assert str(error) == f"{error.given}: {error.why}. {error.instead}"


def test_distillation_needs_a_public_set() -> None:
    with pytest.raises(UserError, match=r"framework=kd with data\.public_size=0"):
        config("framework=kd", "data.public_size=0")
    assert config("framework=kd").public_size == 256
    assert config().public_size == 0
    assert config("data.public_size=20").public_size == 0


def test_files_that_are_no_recipe_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    with pytest.raises(UserError, match="cannot be read"):
        read_yaml(path)
    for text, why in (("a: [", "not YAML"), ("- 1", "mapping"), ("", "mapping")):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=why):
            read_yaml(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not YAML"):
        read_yaml(path)
    path.write_text("rounds: 7", encoding="utf-8")
    assert experiment(read_yaml(path)).rounds == 7


def test_comparisons_lay_arms_over_the_base() -> None:
    tree = {"rounds": 3, "arms": {"a": None, "b": {"framework": "kd"}}}
    overrides = parse_overrides(["training.batch_size=4", "b.rounds=5"])
    found = comparison(tree, overrides).experiments(seeds=[1, 2])
    assert set(found) == {(arm, seed) for arm in "ab" for seed in (1, 2)}
    assert [found[arm, 1].rounds for arm in "ab"] == [3, 5]
    assert {c.training.batch_size for c in found.values()} == {4}
    assert {c.seed for (_, seed), c in found.items() if seed == 2} == {2}
    assert found["b", 1].framework.name == "kd"
    assert set(comparison(tree, {}, only=["b"]).experiments()) == {("b", 0)}
    with pytest.raises(UserError, match="--only c"):
        comparison(tree, {}, only=["c"])
    with pytest.raises(UserError, match="without arms"):
        comparison({"rounds": 3}, {})


def test_shipped_recipes_are_valid() -> None:
    recipes = sorted(recipe_path("compare").parent.glob("*.yaml"))
    assert recipes
    for path in recipes:
        tree = read_yaml(path)
        if "arms" in tree:
            assert comparison(tree, {}).experiments()
        else:
            assert experiment(tree)
    with pytest.raises(UserError, match="compare"):
        recipe_path("compar")


def test_suggestions() -> None:
    assert suggest("meam", ["mean", "median"]) == "Did you mean 'mean'?"
    assert suggest("zzz", ["b", "a"]) == "Choose one of: a, b"
    assert suggest("zzz", []) == "Choose one of: (none)"


def test_errors_come_back_from_other_processes() -> None:
    error = pickle.loads(pickle.dumps(UserError("a=1", "it cannot", "Write a=2")))
    assert (error.given, error.why, error.instead) == ("a=1", "it cannot", "Write a=2")
    assert str(error) == "a=1: it cannot. Write a=2"


def test_a_grid_multiplies_arms_and_words_replace_it() -> None:
    tree = {
        "seeds": [3, 4],
        "arms": {"a": {"framework": "fedllm"}, "b": {"framework": "fedllm"}},
        "grid": {
            "data.partition": ["iid", {"name": "dirichlet", "alpha": 0.1}],
            "b.sizes": {"small": {"rounds": 1, "adapter": {"r": 1}}, "large": {"rounds": 9}},
        },
    }
    found = comparison(tree, {}).experiments()
    places = ("iid", "dirichlet_0.1")
    arms = [f"a_{p}" for p in places] + [f"b_{p}_{s}" for p in places for s in ("small", "large")]
    assert [*found] == [(arm, seed) for seed in (3, 4) for arm in arms]
    own = found["b_dirichlet_0.1_small", 3]
    assert (own.rounds, own.data.partition.name) == (1, "dirichlet")
    assert found["b_iid_large", 4].rounds == 9
    assert {*comparison(tree, {}, ["a", "b_iid_small"]).arms} == {*arms[:2], "b_iid_small"}
    one = comparison(tree, parse_overrides(["data.partition=shard"]), ["a"]).experiments([0])
    assert [(key, c.data.partition.name) for key, c in one.items()] == [(("a", 0), "shard")]
    words = ["a.data.partition=shard", "b.rounds=2"]
    assert [*comparison(tree, parse_overrides(words)).arms] == ["a", *arms[2:]]
    swept = comparison(tree, {}, ["a"], [("data.partition", ("iid", "shard"))])
    assert [*swept.arms] == ["a_iid", "a_shard"]
    for grid, why in (({"rounds": 3}, "neither a list"), ({"rounds": [1, 1]}, "two arms called")):
        with pytest.raises(UserError, match=why):
            comparison({**tree, "grid": grid}, {})
    for key, value in (("seeds", ["x"]), ("reach", 1), ("tuning", {"sed": 1})):
        with pytest.raises(UserError, match=key):
            comparison({**tree, key: value}, {})
    with pytest.raises(UserError, match="would look too good"):
        comparison({**tree, "tuning": {"seed": 4, "grid": {}}}, {}).experiments()


@pytest.mark.parametrize("aside", [0, 20])
def test_no_arm_has_rows_that_another_one_holds_back(aside: int) -> None:
    arms = {
        "fedllm": {"framework": "fedllm"},
        "wide": {"framework": "kd", "data": {"public_size": 12}},
        "narrow": {"framework": "kd", "data": {"public_size": 6}},
        "written": {"framework": "kd", "data": {"public": "words"}},
    }
    compared = comparison({"arms": arms, "data": {"set_aside": aside}}, {})
    runs = compared.experiments()
    held = {
        label: max(
            0 if config.data.public.is_written else config.public_size, config.data.set_aside
        )
        for (label, _), config in runs.items()
    }
    assert held == dict.fromkeys(arms, max(12, aside))


def test_which_arms_are_run_does_not_change_their_rows() -> None:
    recipe = read_yaml(recipe_path("compare"))
    every = comparison(recipe, {}).experiments()
    alone = comparison(recipe, {}, ["fedllm"]).experiments()
    assert {key: every[key] for key in alone} == alone
    assert alone["fedllm", 0].data.set_aside == every["kd", 0].public_size > 0
