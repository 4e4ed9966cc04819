"""Advice: break-even points, the Pareto set, constraints, sweeps."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from trillium.config.experiment import Tree, parse_overrides
from trillium.config.sweep import curves, divide, swept
from trillium.errors import UserError
from trillium.plan.advice import Constraint, advise, constraints, pareto
from trillium.plan.arms import Arm, arms_of, plan_arms
from trillium.plan.models import Models
from trillium.plan.planning import planning_of
from trillium.plan.shapes import shapes, with_sources
from trillium.plan.sums import Sums
from trillium.plan.tips import break_even

SMALL = [
    "model.id=distilgpt2",
    "data.num_clients=2",
    "data.public_size=40",
    "rounds=2",
    "adapter.r=1",
    "training.max_length=16",
    "training.batch_size=8",
]


def test_break_even() -> None:
    """A hundred bytes and three with each are below 1,000 for 300; there may be no such number."""
    assert [break_even(3, 1000 - (100 + 3 * start), start) for start in (1, 30, 400)] == [300] * 3
    assert break_even(1, 50 - (100 + 10), 10) == 0
    assert break_even(0, 400, 10) is None
    assert break_even(2, 2_469_135 - 20, 10) == 1_230_000  # to three digits


def arm(label: str, up: float, flops: float, peak: int) -> Arm:
    from dataclasses import replace
    from types import SimpleNamespace

    sums = Sums(flops=flops, peak_bytes=peak)
    sums.up.bytes = up
    tier = SimpleNamespace(run=sums, misfit="", label="all")
    return replace(Arm(label, None), tiers=(tier,))  # type: ignore[arg-type]


def test_pareto_leaves_out_what_another_beats() -> None:
    arms = [arm("a", 1, 9, 5), arm("b", 9, 1, 5), arm("c", 9, 9, 5), arm("d", 1, 9, 5)]
    assert [found.label for found in pareto(arms)] == ["a", "b", "d"]


def test_constraints_are_read_and_held() -> None:
    [limit] = constraints(["client_memory=8GB"])
    assert limit == Constraint("client_memory", 8e9)
    assert limit.broken_by(arm("a", 0, 0, 9_000_000_000)) == (
        "peak memory of a client: 9.00 GB, above 8.00 GB"
    )
    assert not limit.broken_by(arm("a", 0, 0, 7_000_000_000))
    for word in ("memory=8GB", "up", "up=much"):
        with pytest.raises(UserError):
            constraints([word])


def test_sweeps() -> None:
    plain, sweeps = divide(["a.r=1,4", "b=[1,2]", "recipe.yaml", "kd.c='x,y'"])
    assert plain == ["b=[1,2]", "recipe.yaml", "kd.c='x,y'"]
    assert sweeps == [("a.r", (1, 4))]
    arms: dict[str, Tree] = {"fedllm": {"x": 1}, "kd": {}}
    assert swept(arms, [("fedllm.adapter.r", (1, 4)), ("seed", (0, 7))]) == {
        "fedllm_r1_seed0": {"x": 1, "adapter": {"r": 1}, "seed": 0},
        "fedllm_r1_seed7": {"x": 1, "adapter": {"r": 1}, "seed": 7},
        "fedllm_r4_seed0": {"x": 1, "adapter": {"r": 4}, "seed": 0},
        "fedllm_r4_seed7": {"x": 1, "adapter": {"r": 4}, "seed": 7},
        "kd_seed0": {"seed": 0},
        "kd_seed7": {"seed": 7},
    }


def test_arms_of_a_sweep_lie_on_curves() -> None:
    sweep = ("fedllm.adapter.r", (4, 16, 1))
    arms = swept({"fedllm": {}, "fedllm_full": {}, "kd": {}}, [sweep])
    assert curves(arms, sweep) == {"fedllm": {4: "fedllm_r4", 16: "fedllm_r16", 1: "fedllm_r1"}}
    words = ("wire.up", ("none", "int8"))
    assert curves(swept({"fedllm": {}}, [words]), words) == {}


def test_a_recipe_names_models_as_the_hub_does() -> None:
    tree: Tree = {
        "model": {"id": "llama-3-8b", "dtype": "bfloat16"},
        "tiers": {"phone": {"model": {"id": "gpt2"}}, "own": {"model": {"id": "./folder"}}},
        "framework": "kd",
    }
    found = with_sources(tree)
    assert found["model"] == {"id": "meta-llama/Meta-Llama-3-8B", "dtype": "bfloat16"}
    assert found["tiers"]["phone"] == {"model": {"id": "openai-community/gpt2"}}
    assert found["tiers"]["own"] == tree["tiers"]["own"]
    assert tree["model"]["id"] == "llama-3-8b"
    for shape in shapes().values():
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", shape.source)
        assert shape.source.rpartition("/")[-1].lower() in shapes()  # so it can be planned again


def test_advice_on_real_plans() -> None:
    trees = arms_of(parse_overrides([*SMALL, "framework=fedllm"]))
    trees |= {"kd": parse_overrides([*SMALL, "framework=kd"])}
    told = {"data": {"examples": 16, "classes": 5}, "client": {"device": {"memory": "100MB"}}}
    planning, models = planning_of(told), Models()
    arms = plan_arms(trees, planning, models)
    assert all("100 MB" in a.misfit or "0.1 GB" in a.misfit for a in arms)
    found = advise(arms, trees, planning, [], "")
    assert found.chosen is None
    assert set(found.broken) == {"fedllm", "kd"}
    [tip] = [tip for tip in found.tips if tip.startswith("kd moves fewer")]
    size = int(tip.split()[-2].replace(",", ""))
    bytes_of: Callable[[Arm], float] = lambda a: (  # noqa: E731
        a.tiers[0].round.up.bytes + a.tiers[0].round.down.bytes
    )
    for count, fewer in ((round(0.97 * size), True), (round(1.03 * size) + 1, False)):
        tree = parse_overrides([*SMALL, "framework=kd", f"data.public_size={count}"])
        [kd] = plan_arms({"kd": tree}, planning, models)
        assert (bytes_of(kd) < bytes_of(arms[0])) == fewer


def test_what_cannot_be_planned_says_why() -> None:
    tree = parse_overrides([*SMALL, "framework=fedllm", "model.quantize=nf4"])
    [found] = plan_arms({"x": tree}, planning_of({}), Models())
    assert "quantised" in found.refused
    with pytest.raises(UserError, match=r"plan\.client\.devise"):
        planning_of({"client": {"devise": {}}})


def test_a_baseline_is_no_recommendation() -> None:
    words = parse_overrides(SMALL)
    trees = {name: {**words, "framework": name} for name in ("centralised", "fedllm")}
    planning, models = planning_of({"data": {"examples": 16}}), Models()
    arms = plan_arms(trees, planning, models)
    assert arms[0].bytes_up + arms[0].bytes_down == 0
    assert advise(arms, trees, planning, [], "").chosen == "fedllm"
    assert advise(arms[:1], trees, planning, [], "").chosen == "centralised"


def test_no_tip_changes_an_adapter_that_is_gone_on_from(tmp_path: Path) -> None:
    options = {"peft_type": "LORA", "r": 1, "lora_alpha": 16, "target_modules": ["c_attn"]}
    told = {**options, "base_model_name_or_path": "distilgpt2"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(told))
    own = [word for word in SMALL if not word.startswith(("model", "adapter"))]
    words = parse_overrides([*own, f"model.id={tmp_path}"])
    trees = {name: {**words, "framework": name} for name in ("fedllm", "kd")}
    planning, models = planning_of({"data": {"examples": 16, "classes": 50}}), Models()
    arms = plan_arms(trees, planning, models)
    tips = advise(arms, trees, planning, [], "").tips
    assert not any("rank" in tip for tip in tips)
