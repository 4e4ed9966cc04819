"""The cut that a plan proposes, against a plan of every cut."""

from __future__ import annotations

from functools import cache

import pytest

from trillium.config.experiment import Tree, experiment, parse_overrides
from trillium.errors import UserError
from trillium.plan.advice import constraints
from trillium.plan.arms import Arm, arms_of, plan_arm
from trillium.plan.cut_choice import Proposal, with_cuts
from trillium.plan.models import Models
from trillium.plan.planning import planning_of

SMALL = (
    "model.id=distilgpt2",  # six blocks
    "data.num_clients=2",
    "data.public_size=0",
    "training.max_length=16",
    "training.batch_size=8",
    "rounds=1",
)
AUTO = "framework={name: split, cut: auto}"
FROZEN = "framework={name: split, cut: auto, train: server}"
DATA = {"data": {"examples": 16}}
MODELS = Models()


def tree_of(*words: str) -> Tree:
    [tree] = arms_of(parse_overrides([*SMALL, *words])).values()
    return tree


def proposed(
    *words: str, told: Tree | None = None, limits: tuple[str, ...] = ()
) -> tuple[Tree, list[Proposal]]:
    planning = planning_of({**DATA, **(told or {})})
    trees, found = with_cuts({"arm": tree_of(*words)}, planning, constraints(limits), MODELS)
    return trees["arm"], found


@cache
def every(*words: str, most: int = 5) -> list[Arm]:
    """Return a plan of every cut."""
    trees = [tree_of(*words, f"framework.cut={cut}") for cut in range(1, most + 1)]
    return [plan_arm("arm", tree, planning_of(DATA), MODELS) for tree in trees]


def test_the_deepest_that_fits_the_memory() -> None:
    peaks = [arm.peak_bytes for arm in every(AUTO)]
    assert peaks == sorted(peaks)
    for cut in (1, 2, 4):
        room = (peaks[cut - 1] + peaks[cut]) / 2
        tree, [found] = proposed(AUTO, told={"client": {"device": {"memory": room}}})
        assert tree["framework"] == {"name": "split", "cut": cut}
        assert (found.label, found.cut) == ("arm", cut)
        assert found.why.startswith(f"with {cut + 1}: needs ")


def test_the_deepest_within_a_constraint() -> None:
    flops = [arm.flops for arm in every(AUTO)]
    most = (flops[2] + flops[3]) / 2
    _, [found] = proposed(AUTO, limits=(f"client_flops={most:.0f}",))
    assert found.cut == 3
    assert "FLOPs of a client" in found.why


@pytest.mark.parametrize(("words", "cut"), [(AUTO, 5), (FROZEN, 2)])
def test_with_plenty_of_everything_the_bound_decides(words: str, cut: int) -> None:
    _, [found] = proposed(words)
    assert found.cut == cut
    assert not found.why.startswith("with")


def test_in_the_u_shape_a_block_is_left_for_the_server() -> None:
    _, [found] = proposed("framework={name: split, cut: auto, shape: u, tail: 4}")
    assert found.cut == 3


def test_where_not_even_one_block_fits_the_plan_says_so() -> None:
    tree, [found] = proposed(AUTO, told={"client": {"device": {"memory": "1MB"}}})
    assert tree["framework"]["cut"] == found.cut == 1
    assert found.why.startswith("not even that will do: needs")


def test_each_tier_has_its_own() -> None:
    words = (
        FROZEN,
        "model.dropout=0",
        "tiers={thin: {clients: [client-0], cut: auto}, slow: {clients: [client-1], cut: auto}}",
    )
    one, two = (arm.flops for arm in every(*words[:2], most=2))
    fast = {"device": {"flops": "1TFLOPS"}, "link": {"up": "1Tbit", "down": "1Tbit"}}
    thin = {**fast, "device": {"flops": "1TFLOPS", "memory": "1MB"}}
    slow = {**fast, "device": {"flops": 100.0}}
    told = {"client": fast, "server": fast, "tiers": {"thin": thin, "slow": slow}}
    plenty, little = (f"round={flops / 100:.0f}" for flops in (2 * two, (one + two) / 2))
    tree, found = proposed(*words, told=told, limits=(plenty,))
    assert [proposal.label for proposal in found] == ["arm", "arm thin", "arm slow"]
    assert tree["framework"]["cut"] == 2
    assert {label: tier["cut"] for label, tier in tree["tiers"].items()} == {"thin": 1, "slow": 2}
    assert experiment(tree).tiers["slow"].cut == 2
    tree, found = proposed(*words, told=told, limits=(little,))
    assert tree["tiers"]["slow"]["cut"] == 1
    assert found[-1].why.startswith("with 2: seconds of a round")


def test_numbers_stay_as_they_are() -> None:
    tree = tree_of("framework={name: split, cut: 2}")
    assert with_cuts({"arm": tree}, planning_of(DATA), [], MODELS) == ({"arm": tree}, [])


def test_settings_that_cannot_be_do_not_hide_the_other_arms() -> None:
    trees = {"wrong": tree_of(AUTO, "framework.shape=v"), "right": tree_of(AUTO)}
    found, [proposal] = with_cuts(trees, planning_of(DATA), [], MODELS)
    assert proposal.label == "right"
    assert "'v'" in plan_arm("wrong", found["wrong"], planning_of(DATA), MODELS).refused


def test_a_run_needs_a_number() -> None:
    with pytest.raises(UserError, match="trillium plan"):
        experiment(tree_of(AUTO))
