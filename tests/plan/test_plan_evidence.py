"""Evidence: what runs have measured, what is near, and that advice claims nothing beside it."""

from __future__ import annotations

import json
import math
import runpy
import shlex
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import stdev
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t
from typer.testing import CliRunner

import trillium
from report_fixture import tiny_messages, tiny_metrics, write_run
from trillium.cli.app import app
from trillium.cli.words import ask
from trillium.config.comparison import comparison
from trillium.config.experiment import Tree, experiment
from trillium.config.given import default_comparison
from trillium.errors import UserError
from trillium.plan.advice import Advice, advise
from trillium.plan.arms import Arm
from trillium.plan.asked import question
from trillium.plan.compared import as_comparison
from trillium.plan.evidence import Line, Seed, from_json, shipped, to_json
from trillium.plan.gather import evidence_of
from trillium.plan.measured import measured_cells, measured_lines, nearest
from trillium.plan.planning import planning_of
from trillium.plan.point import Point, Value, differences, is_near
from trillium.plan.sums import Sums

POINT = Point(
    {"data": "questions", "model": "minilm", "num_parameters": 22_000_000, "num_classes": 77,
     "num_clients": 10, "rows": 100.0, "skew": 0.5, "public_rows": 500, "tokens": 32},
    {"framework.name": "fedllm", "task.name": "classification", "adapter.r": 8, "rounds": 4,
     "fleet.failure_rate": 0.3, "wire.up.0.name": "int4", "adapter.dora": False},
)  # fmt: skip


def line(point: Point = POINT, *shares: float, arm: str = "measured", own: bool = False) -> Line:
    """An arm that got so far in each seed, on a way from 0.4 to 0.8."""
    seeds = tuple(
        Seed(seed=n, value=0.4 + 0.4 * share, local_only=0.4, centralised=0.8, bytes=7, flops=8)
        for n, share in enumerate(shares or (0.5,))
    )
    return Line(arm=arm, commit="abc", measure="accuracy", facts=dict(point.facts),
                settings=dict(point.settings), seeds=seeds, own=own)  # fmt: skip


def moved(point: Point = POINT, /, **changes: Value) -> Point:
    """A point with other facts, or other settings (`adapter__r`)."""
    facts = {key: value for key, value in changes.items() if key in point.facts}
    settings = {key.replace("__", "."): v for key, v in changes.items() if key not in facts}
    return Point({**point.facts, **facts}, {**point.settings, **settings})


@pytest.mark.parametrize(
    ("mine", "theirs", "expected"),
    [(10, 20, True), (20, 10, True), (10, 21, False), (0, 0.0, True), (0, 1, False),
     (0.3, 0.3, True), (None, 3, False), (None, None, True), ("iid", "iid", True),
     ("iid", 0.5, False), (True, 1, True), (True, 2, False), (False, 0.1, False)],
)  # fmt: skip
def test_numbers_are_near_within_a_factor(mine: Value, theirs: Value, expected: bool) -> None:
    assert is_near(mine, theirs) == is_near(theirs, mine) == expected


def test_each_axis_counts() -> None:
    """Every fact and setting is an axis: moved too far, the measured point speaks for it no more."""
    far: dict[str, Value] = {key: 1e9 for key in POINT.facts if key not in ("data", "model")}
    for key, value in {**far, "num_parameters": 1, **dict.fromkeys(POINT.settings, "else")}.items():
        changes: dict[str, Value] = {key.replace(".", "__"): value}
        if key == "num_parameters":
            changes["model"] = "other"
        found = differences(moved(POINT, **changes), POINT)
        assert not all(one.near for one in found), key
        assert any(one.given == value for one in found), key
    assert [str(one) for one in differences(moved(num_clients=20, new__one=3), POINT)] == [
        "clients 20 → 10",
        "new.one 3 → null",
    ]
    # The number of parameters of one model is the same, whoever counts; and names are but said.
    for other in (moved(num_parameters=1), moved(model="bert"), moved(data="assumed")):
        assert all(one.near for one in differences(other, POINT))


def test_of_another_component_its_name_is_told() -> None:
    settings: dict[str, Value] = {
        "adapter.name": "lora",
        "adapter.alpha": 16,
        "adapter.r": 8,
        "adapters": 1,
    }
    full = Point({}, {"adapter.name": "full", "adapters": 2})
    found = differences(full, Point({}, settings))
    assert [str(one) for one in found] == ["adapter.name full → lora", "adapters 2 → 1"]
    tuned = differences(Point({}, {**settings, "adapter.r": 4}), Point({}, settings))
    assert [str(one) for one in tuned] == ["adapter.r 4 → 8"]


def test_a_setting_that_is_newer_than_a_run_was_at_its_default() -> None:
    given = replace(moved(new__one=3), defaults={"new.one": 3})
    assert differences(given, POINT) == []
    assert [str(one) for one in differences(replace(given, defaults={}), POINT)]
    found = differences(replace(given, defaults={"new.one": 10}), POINT)
    assert [(str(one), one.near) for one in found] == [("new.one 3 → 10", False)]
    # What was null was not at its default, and what is gone is not what was.
    for measured in (moved(new__one=None), moved(new__one=3, old=None)):
        assert not all(one.near for one in differences(given, measured))


def test_the_interval_is_over_seeds() -> None:
    shares = (0.5, 0.7, 0.9)
    found = line(POINT, *shares).way
    assert found is not None
    assert found.low is not None
    half = t.ppf(0.975, 2) * stdev(shares) / math.sqrt(3)
    assert found.num_seeds == 3
    assert found.mean == pytest.approx(0.7)
    assert found.mean - found.low == pytest.approx(half, rel=1e-3)
    many = line(POINT, *[0.1 * n for n in range(20)]).way  # of more than the table has: no narrower
    assert many is not None
    assert many.high is not None
    assert many.high - many.mean >= t.ppf(0.975, 19) * stdev([0.1 * n for n in range(20)]) / 20**0.5


def test_one_seed_has_no_interval() -> None:
    found = nearest(POINT, [line(POINT, 0.5)])
    assert found is not None
    assert found.way is not None
    assert (found.way.low, found.way.high, found.way.num_seeds) == (None, None, 1)
    assert measured_cells(found) == ["50 %", "near, one seed"]
    several = nearest(POINT, [line(POINT, 0.5, 0.7)])
    assert measured_cells(several) == ["60 % [-67, 187]", "near, 2 seeds"]


def test_a_way_goes_up_in_accuracy_and_down_in_loss() -> None:
    one = line(POINT, 0.25)
    assert one.model_copy(update={"measure": "loss"}).way is None  # pooled data made it worse
    down = Seed(seed=0, value=2.5, local_only=3.0, centralised=2.0, bytes=None, flops=None)
    fell = one.model_copy(update={"measure": "loss", "seeds": (down,)})
    assert fell.way is not None
    assert fell.way.mean == pytest.approx(0.5)
    assert fell.model_copy(update={"measure": "accuracy"}).way is None
    for change in ({"local_only": None}, {"centralised": None}, {"centralised": 3.005}):
        short = fell.model_copy(update={"seeds": (down.model_copy(update=change),)})
        assert short.way is None


def test_near_comes_first_then_own_then_the_fewest_axes() -> None:
    far, near = moved(num_clients=100), moved(num_clients=20)
    farther = moved(num_clients=100, rows=9)
    lines = [line(farther, arm="farther"), line(far, arm="far"), line(farther, arm="own", own=True)]
    found = [nearest(POINT, lines[: n + 1]) for n in range(3)]
    assert [one.line.arm for one in found if one is not None] == ["farther", "far", "own"]
    assert nearest(POINT, [*lines, line(near, arm="near")]).line.arm == "near"  # type: ignore[union-attr]
    both = [line(arm="same"), line(near, arm="mine", own=True)]
    assert nearest(POINT, both).line.arm == "mine"  # type: ignore[union-attr]
    assert nearest(moved(framework__name="kd"), both) is None
    assert nearest(moved(task__name="causal_lm"), both) is None
    assert nearest(POINT, []) is None


def test_in_words() -> None:
    found = nearest(moved(num_clients=4, rows=50.0), [line(POINT, 0.5)])
    assert found is not None
    [_, text] = measured_lines([("mine", found)], [])
    assert text == (
        "  mine: far, measured on questions: 50 % of the way from local only to centralised; "
        "accuracy 60.0 %, one seed; differs in: clients 4 → 10; rows of a client 50 → 100"
    )
    two = measured_lines([("mine", found), ("other", found)], ["kd_s1: failed"])
    assert two[1] == "  all differ in: clients 4 → 10; rows of a client 50 → 100"
    assert two[-1] == "  not used as evidence: kd_s1: failed"
    assert measured_lines([], ["kd_s1: failed"]) == ["Not used as evidence: kd_s1: failed"]


# Advice


def plan_of(label: str, measured: Any, bytes_up: float = 1.0) -> Arm:
    sums = Sums(flops=1.0, peak_bytes=1)
    sums.up.bytes = bytes_up
    tier = SimpleNamespace(run=sums, misfit="", label="all")
    return replace(Arm(label, None), tiers=(tier,), measured=measured)  # type: ignore[arg-type]


def advice_of(points: Mapping[str, Point], lines: list[Line]) -> Advice:
    arms = [
        plan_of(label, nearest(point, lines), 1000.0 - place)
        for place, (label, point) in enumerate(points.items())
    ]
    return advise(arms, {}, planning_of({}), [], "trillium compare this")


FACTORS = st.sampled_from([1, 1, 1, 1, 0.4, 0.5, 0.75, 1.9, 2, 2.1, 7])


@st.composite
def points(draw: st.DrawFn) -> Point:
    """A point at random, often near to `POINT`."""
    parts = []
    for part in (POINT.facts, POINT.settings):
        values: dict[str, Value] = {}
        for key, value in part.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                values[key] = value * draw(FACTORS)
            elif draw(st.integers(0, 9)) == 0:
                values[key] = draw(st.sampled_from([None, True, "kd", "causal_lm", 3]))
            else:
                values[key] = value
        parts.append(values)
    return Point(*parts)


def speaks_for(point: Point, other: Point) -> bool:
    """The rule by hand."""
    for mine, theirs, names in (
        (point.facts, other.facts, ("data", "model", "num_parameters")),
        (point.settings, other.settings, ()),
    ):
        for key in mine:
            a, b = mine[key], theirs[key]
            if key in names and not (
                key == "num_parameters" and point.facts["model"] != other.facts["model"]
            ):
                continue
            if type(a) in (int, float) and type(b) in (int, float):
                if max(a, b) > 2 * min(a, b):  # type: ignore[type-var,operator]
                    return False
            elif a != b:
                return False
    return True


@given(st.lists(points(), min_size=2, max_size=4), st.lists(points(), max_size=5), st.data())
def test_advice_claims_no_accuracy_beside_the_evidence(
    asked: list[Point], measured: list[Point], data: st.DataObject
) -> None:
    share = st.floats(-1, 2)
    lines = [
        line(
            point, *data.draw(st.lists(share, min_size=1, max_size=3)), own=data.draw(st.booleans())
        )
        for point in measured
    ]
    named = {f"arm{n}": point for n, point in enumerate(asked)}
    known = {label for label, p in named.items() if any(speaks_for(p, one.point) for one in lines)}
    found = advice_of(named, lines)
    said = "; ".join(found.reasons)
    assert ("of the way" in said) == (found.chosen is not None) == (len(known) > 1)
    assert found.chosen is None or found.chosen in known
    missing = [reason for reason in found.reasons if "nothing near enough" in reason]
    assert [text.rpartition("accuracy of ")[2].split(", ") for text in missing] == (
        [[label for label in named if label not in known]] if len(known) < len(named) else []
    )
    assert ("trillium compare this" in said) == (len(known) < len(named))


def test_the_most_accurate_is_taken_where_it_is_known() -> None:
    """Cheaper ones that no interval tells from it are named; what is far has no say."""
    arms = {name: moved(head__name=name) for name in ("dear", "best", "alike", "worse", "far")}
    lines = [
        line(arms["dear"], 0.79, 0.85, 0.88),
        line(arms["best"], 0.80, 0.85, 0.90),
        line(arms["alike"], 0.79, 0.85, 0.88),
        line(arms["worse"], 0.2, 0.3, 0.4),
        line(moved(arms["far"], rows=1.0), 0.99, 0.99, 0.99),
    ]
    found = advice_of(arms, lines)
    assert found.chosen == "best"
    said = "; ".join(found.reasons)
    assert "85 % [73, 97] of the way, 3 seeds" in said
    assert "alike (84 % [73, 95]) is within its interval, for 998 B against 999 B" in said
    assert "dear (" not in said
    assert "worse (" not in said
    assert "to know the accuracy of far;" in said
    one = advice_of({name: arms[name] for name in ("best", "worse")},
                    [line(arms["best"], 0.8), line(arms["worse"], 0.7)])  # fmt: skip
    assert one.chosen == "best"
    assert "another seed may order them otherwise" in one.reasons


def test_without_evidence_the_cheapest_is_named_and_none_is_taken() -> None:
    found = advice_of({"a": POINT, "b": POINT}, [])
    assert (found.chosen, found.cheapest) == (None, ("b",))
    assert found.reasons == (
        "the fewest bytes of each framework: b (999 B)",
        "nothing near enough was measured to know the accuracy of a, b",
        "this would tell, on your data: trillium compare this",
    )


# Folders


def config(framework: str, **changes: Any) -> Tree:
    return {
        "framework": {"name": framework},
        "rounds": 2,
        "task": {"name": "classification"},
        "model": {"id": "minilm"},
        "data": {"source": {"name": "files", "train": "/home/me/mine.csv"},
                 "partition": {"name": "dirichlet", "alpha": 0.5}},
        "adapter": {"name": "lora", "r": 8, "layers": [3, 4, 5]},
        "wire": {"up": [{"name": "int4", "kinds": ["logits"]}]},
        **changes,
    }  # fmt: skip


RESULTS = {"local_only": 0.4, "centralised": 0.8, "fedllm": 0.7}


def folder_of(path: Path, results: Mapping[str, float] = RESULTS, seeds: int = 2) -> Path:
    path.mkdir()
    (path / "compare.yaml").write_text("arms: []\n")
    for arm, accuracy in results.items():
        for seed in range(seeds):
            metrics = tiny_metrics(0.1, 0.2, accuracy + 0.02 * seed * (arm == "fedllm"))
            own = write_run(
                path / f"{arm}_s{seed}", arm, seed, metrics, tiny_messages(), config=config(arm)
            )
            told = json.loads((own / "data.json").read_text())
            told["test"]["digest"] = "the same rows"
            (own / "data.json").write_text(json.dumps(told))
    return path


def test_a_comparison_becomes_lines(tmp_path: Path) -> None:
    found = {one.arm: one for one in evidence_of([folder_of(tmp_path / "c")]).lines}
    assert {*found} == {*RESULTS}
    fedllm = found["fedllm"]
    assert [seed.value for seed in fedllm.seeds] == [0.7, 0.72]
    assert {(s.local_only, s.centralised) for s in fedllm.seeds} == {(0.4, 0.8)}
    assert {(s.bytes, s.flops) for s in fedllm.seeds} == {(240.0, 3000.0)}
    assert (fedllm.measure, fedllm.commit, fedllm.own) == ("accuracy", "0123abcd", False)
    assert fedllm.facts == {
        "data": "mine", "model": "minilm", "num_parameters": None, "num_classes": 2,
        "num_clients": 2, "rows": 3.0, "skew": 0.5, "public_rows": 7.0, "tokens": None,
    }  # fmt: skip
    assert fedllm.settings == {
        "framework.name": "fedllm", "rounds": 2, "task.name": "classification",
        "adapter.name": "lora", "adapter.r": 8, "adapter.layers": 3,
        "wire.up.0.name": "int4", "wire.up.0.kinds": "logits",
    }  # fmt: skip
    assert fedllm.way is not None
    assert fedllm.way.mean == pytest.approx((0.3 + 0.32) / 0.8)
    assert found["local_only"].way.mean == 0  # type: ignore[union-attr]


def test_baselines_are_found_by_their_rows(tmp_path: Path) -> None:
    alone = folder_of(tmp_path / "a", {"fedllm": 0.6})
    baselines = folder_of(tmp_path / "b", {"local_only": 0.4, "centralised": 0.8})
    [found] = evidence_of([alone]).lines
    assert found.way is None
    found = next(one for one in evidence_of([alone, baselines]).lines if one.arm == "fedllm")
    assert found.way is not None
    for seed in range(2):  # the rows of other clients
        path = alone / f"fedllm_s{seed}" / "data.json"
        told = json.loads(path.read_text())
        told["clients"]["client-0"]["labels"] = {"no": 4}
        path.write_text(json.dumps(told))
    found = next(one for one in evidence_of([alone, baselines]).lines if one.arm == "fedllm")
    assert found.way is None


def test_what_has_not_finished_or_is_damaged_is_left_out_and_said(tmp_path: Path) -> None:
    path = folder_of(tmp_path / "c")
    for name, file, text in (
        ("fedllm_s1", "status.json", '{"state": "failed", "arm": "fedllm"}'),
        ("local_only_s1", "config.yaml", "framework: [1"),
        ("centralised_s1", "metrics.jsonl", '{"round": 1, "accur'),
        ("centralised_s0", "data.json", '{"clients": [1], "public": 3, "labels": 7}'),
    ):
        (path / name / file).write_text(text)
    found = evidence_of([path])
    assert {one.arm: len(one.seeds) for one in found.lines} == dict.fromkeys(RESULTS, 1)
    assert set(found.skipped) == {
        "fedllm_s1: failed",
        "local_only_s1: its config.yaml is lost or broken",
        "centralised_s1: nothing was measured",
    }
    lost = next(one for one in found.lines if one.arm == "centralised")
    assert (lost.facts["num_clients"], lost.facts["num_classes"]) == (None, None)


@pytest.mark.parametrize("case", ["absent", "empty", "unfinished"])
def test_folders_without_a_usable_run_are_refused(tmp_path: Path, case: str) -> None:
    path = tmp_path / "it"
    if case == "empty":
        path.mkdir()
    if case == "unfinished":
        write_run(path, "fedllm", 0, tiny_metrics(0.1), state="running", config=config("fedllm"))
    with pytest.raises(UserError) as caught:
        evidence_of([path])
    assert str(path) in caught.value.given
    assert caught.value.why
    assert caught.value.instead
    shown = CliRunner().invoke(app, ["plan", "gpt2", "--evidence", str(path)])
    assert isinstance(shown.exception, UserError)


def test_lines_are_read_as_they_were_written(tmp_path: Path) -> None:
    lines = evidence_of([folder_of(tmp_path / "c")]).lines
    lines = (*lines, line(moved(adapter__dora=True, adapter__r=None, rounds=1), 0.1, 0.2))
    text = to_json(lines)
    found = from_json(text)
    assert len(found) == len(lines)
    assert all(one in found for one in lines)
    assert "/home/me" not in text
    assert from_json(to_json([])) == ()


def test_the_table_is_made_of_comparisons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder_of(tmp_path / "c")
    (path / "fedllm_s1" / "status.json").write_text('{"state": "failed", "arm": "fedllm"}')
    script = Path(__file__).parents[2] / "benchmarks" / "comparison" / "evidence.py"
    monkeypatch.setattr(sys, "argv", [str(script), str(path)])
    runpy.run_path(str(script), run_name="__main__")
    printed = capsys.readouterr()
    assert printed.err == "fedllm_s1: failed\n"
    assert {one.facts["data"] for one in from_json(printed.out)} == {"Banking77"}
    assert {one.arm for one in from_json(printed.out)} == {*RESULTS}


@pytest.mark.parametrize(
    "text", ["", "[]", '{"kd": {}}', '{"kd": {"common": {}, "lines": [{"arm": "x"}]}}']
)
def test_a_damaged_table_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="damaged"):
        from_json(text)


def test_what_is_shipped_can_be_read() -> None:
    for one in shipped():
        assert one.commit, one.arm
        assert not one.own
        assert nearest(one.point, shipped()).is_near  # type: ignore[union-attr]


# The whole of it


@pytest.fixture(scope="module")
def asked(hub: Path) -> Tree:
    """Two arms, on rows whose first word tells the class."""
    return {
        "rounds": 1,
        "model": {"id": str(hub / "bert"), "random_weights": True},
        "data": {"source": {"name": "files", "train": str(hub / "classification.jsonl")},
                 "num_clients": 2, "public_size": 8},
        "training": {"batch_size": 4},
        "adapter": {"target_modules": ["query"]},
        "arms": {name: {"framework": name} for name in ("kd", "local_only")},
    }  # fmt: skip


def test_a_plan_is_near_to_the_run_of_its_recipe(asked: Tree, tmp_path: Path) -> None:
    """Nothing differs where the same is planned that was run; a setting that is moved is told."""
    ran = trillium.compare(asked, out=tmp_path, progress=False)
    assert not ran.failures
    made = trillium.plan(asked, evidence=[ran.folder])
    for arm in made.arms:
        assert arm.measured is not None
        assert arm.measured.line.own
        assert arm.measured.differences == ()
    assert [arm["measured"]["near"] for arm in made.to_dict()["arms"]] == [True] * 2
    json.dumps(made.to_dict())
    page = made.save(tmp_path)[-1].read_text(encoding="utf-8")
    assert "near, kd of yours on classification" in page
    alone = {**asked, "arms": {"local_only": {"framework": "local_only"}}}
    changes = ("rounds=3", "training.batch_size=8", "data={public_size: null, set_aside: 8}")
    far = trillium.plan(alone, *changes, evidence=ran.folder)
    [moved_arm] = far.arms
    assert moved_arm.measured is not None
    told = [str(one) for one in moved_arm.measured.differences]
    assert told == ["rounds 3 → 1", "training.batch_size 8 → 4"]
    assert "nothing near enough was measured to know the accuracy of local_only" in repr(far)


def test_evidence_is_named_on_the_command_line(tmp_path: Path) -> None:
    words = ["distilgpt2", "framework=fedllm", "data.num_clients=2", "rounds=1",
             "training.max_length=16", "plan.data.examples=16"]  # fmt: skip
    first, second = folder_of(tmp_path / "a"), folder_of(tmp_path / "b", {"kd": 0.5}, 1)
    given = ["--evidence", str(first), "--evidence", str(second)]
    shown = CliRunner().invoke(app, ["plan", *words, *given])
    assert shown.exit_code == 0, shown.output
    assert " % [46, 109]" in shown.output
    assert "far, fedllm of yours on mine: 7" in shown.output
    assert "clients" not in shown.output.split("differs in")[1].split(";")[0]


def command_of(*words: str) -> list[str]:
    model = [word for word in words if "=" not in word]
    settings = [word for word in words if "=" in word]
    return shlex.split(question(model[0] if model else None, settings, {}).command)


def test_the_command_would_run() -> None:
    """It is the default comparison with what was set, of the frameworks that were asked for."""
    words = ["distilgpt2", "framework={name: kd, temperature: 2.0}", "data.num_clients=2",
             "adapter.target_modules=[c_attn, c_proj]", "adapter.r=2,4", "wire.up=[int8],[int4]",
             "fedllm_full.rounds=2", "plan.data.examples=16", "training.max_length=16"]  # fmt: skip
    command = command_of(*words)
    assert command[:4] == ["trillium", "compare", "--data", "YOUR_FILE"]
    assert command[-4:] == ["--only", "kd,local_only,centralised", "--seeds", "3"]
    found = ask(command[4:-4], None, None, sweeps=True)
    only = command[-3].split(",")
    tree = default_comparison(found.tree)
    made = comparison(tree, found.tree, only, found.sweeps).experiments([0, 1, 2])
    assert len(made) == 3 * (2 * 2 + 2 + 2)
    config = made["kd_r4_upint8", 0]
    assert (config.framework.temperature, config.data.num_clients) == (2.0, 2)  # type: ignore[attr-defined]
    assert config.model.id == "distilbert/distilgpt2"
    assert config.adapter.target_modules == ("c_attn", "c_proj")  # type: ignore[attr-defined]


def test_the_command_for_other_tasks_and_for_recipes(tmp_path: Path) -> None:
    assert command_of("gpt2", "task=preference", "split.framework.cut=auto")[4:] == [
        "model.id=openai-community/gpt2", "task=preference",
        "--only", "fedllm,split,local_only,centralised", "--seeds", "3",
    ]  # fmt: skip
    assert command_of("framework=fedkseed", "data.source=builtin") == [
        *("trillium", "compare", "data.source=builtin", "--seeds", "3"),
    ]
    assert shlex.split(question("compare", [], {}).command)[2:] == ["compare", "--seeds", "3"]
    asks = question({"arms": {"fedllm": {"framework": "fedllm"}}}, [], {})
    assert shlex.split(asks.command)[2] == "RECIPE.yaml"
    path = tmp_path / "mine.yaml"
    path.write_text("{seeds: [1, 2], arms: {fedllm: {framework: fedllm}, kd: {framework: kd}}}")
    asks = question(path, ["rounds=2", "adapter.r=1,2", "plan.data.examples=9"], {})
    assert shlex.split(asks.command)[2:] == [str(path), "rounds=2", "adapter.r=1,2"]


def test_where_accuracy_decides_the_recipe_is_a_comparison() -> None:
    base = {"model": {"id": "gpt2"}, "data": {"num_clients": 3}, "adapter": {"r": 4}}
    trees = {
        "fedllm": {**base, "framework": "fedllm", "data": {"num_clients": 3, "set_aside": 9}},
        "kd": {**base, "framework": {"name": "kd", "temperature": 2.0}},
    }
    tree = as_comparison(trees)
    assert tree["model"] == {"id": "gpt2"}
    made = comparison(tree, {}).experiments()
    assert {label for label, _ in made} == {"fedllm", "kd", "local_only", "centralised"}
    assert {seed for _, seed in made} == {0, 1, 2}
    for label, own in trees.items():
        assert made[label, 0].framework == experiment(own).framework
        assert made[label, 0].adapter == experiment(own).adapter
        assert made[label, 0].data.num_clients == 3
