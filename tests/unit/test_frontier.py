"""The benchmark of accuracy against bytes: its look-up changes nothing, its tables count right."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import tiny
from trillium.config.experiment import read_yaml
from trillium.errors import UserError
from trillium.experiment.folder import to_yaml
from trillium.frameworks.kd import protocol as kd
from trillium.models.slots import values
from trillium.report.read import Run
from trillium.report.traffic import RoundTraffic, Traffic
from trillium.wire.codecs.rows import FullRows
from trillium.wire.soft_labels import SoftLabels

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RECIPE = read_yaml(BENCHMARKS / "frontier_fedllm.yaml")


def benchmark(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module(name)


def last_block(hub: Path, framework: str = "fedllm") -> Any:
    targets = "[query, key, value, intermediate.dense, output.dense]"
    adapter = f"adapter={{name: lora, r: 3, target_modules: {targets}, layers: [2]}}"
    return tiny.federation(hub, adapter, f"framework={framework}", model="bert")


@pytest.mark.parametrize("framework", ["fedllm", "{name: kd, direction: both}"])
def test_a_run_with_looked_up_blocks_is_the_run_without(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, framework: str
) -> None:
    cache = benchmark("frontier_cache", monkeypatch)
    plain, fast = (tiny.perturb(last_block(hub, framework)) for _ in range(2))
    before = [name for name, _ in fast.model.module.named_parameters()]
    examples = [*fast.server.pooled, *fast.server.test, *fast.server.public]
    prefix = cache.PrefixCache.of(fast.model, 2, examples, tmp_path)
    with cache.cached_prefix(fast.model, prefix):
        found = fast.run()
    expected = plain.run()
    assert [line["loss"] for line in found] == pytest.approx(
        [line["loss"] for line in expected], abs=1e-9
    )
    assert tiny.distance(values(fast.server.state), values(plain.server.state)) < 1e-9
    assert expected[-1]["loss"] != pytest.approx(expected[0]["loss"], abs=1e-3)
    assert [name for name, _ in fast.model.module.named_parameters()] == before


def test_a_cache_does_not_depend_on_who_has_the_texts(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = benchmark("frontier_cache", monkeypatch)
    federation = last_block(hub)
    examples = [*federation.server.pooled, *federation.server.test]
    cache.PrefixCache.of(federation.model, 2, examples, tmp_path)
    cache.PrefixCache.of(federation.model, 2, examples[::-1], tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    cache.PrefixCache.of(federation.model, 2, examples[:-5], tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_wrong_cache_is_found_out(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = benchmark("frontier_cache", monkeypatch)
    federation = last_block(hub)
    examples = federation.server.pooled
    prefix = cache.PrefixCache.of(federation.model, 2, examples, tmp_path)
    assert cache.check_cached(federation.model, prefix, examples[:8]) < 1e-10
    prefix._hidden = prefix._hidden + 0.1 * torch.randn_like(prefix._hidden)
    with pytest.raises(SystemExit, match="changes logits"):
        cache.check_cached(federation.model, prefix, examples[:8])


def test_teachers_are_held_against_labels_that_the_server_does_not_use(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = benchmark("frontier_teacher", monkeypatch)
    federation = tiny.federation(
        hub, "framework={name: kd, direction: server}", "data.num_clients=2"
    )
    public = federation.server.public
    log_probs = torch.full((4, 3), 0.1).log()
    for row, example in enumerate(public[1:5]):
        right = int(example.labels)
        log_probs[row, (right + 1) % 3 if row == 2 else right] = 0.0
    labels = SoftLabels(FullRows(), log_probs.log_softmax(-1), 3)
    indices = [example.index for example in public[1:5]]
    assert teacher.accuracy(federation.server, indices, labels) == 0.75

    make = kd.make_teacher  # type: ignore[attr-defined]
    plain = tiny.federation(hub, "framework={name: kd, direction: server}", "data.num_clients=2")
    with teacher.watched_teachers(federation.server, tmp_path):
        found = federation.run()
    assert found[-1]["loss"] == plain.run()[-1]["loss"]
    assert kd.make_teacher is make  # type: ignore[attr-defined]
    lines = teacher.read_teachers(tmp_path)
    assert [line["round"] for line in lines] == [1, 2]
    twelfths = [12 * line["teacher"] for line in lines]
    assert twelfths == pytest.approx([round(count) for count in twelfths])
    assert teacher.read_teachers(tmp_path / "none") == []


def test_what_is_sent_once_counts_from_the_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = benchmark("frontier_results", monkeypatch)
    line = {"accuracy": 0.5, "f1": 0.5, "loss": 1.0}
    run = Run(
        folder=tmp_path,
        arm="ours",
        seed=0,
        state="finished",
        status={"seconds": 1.0, "started": ""},
        config={k: {} for k in module.SETTINGS} | {"model": {"dtype": "float32"}},
        env={"argv": ["x.py"], "device": "cpu", "git_sha": None, "versions": {}},
        data={
            "clients": {"a": {"num_examples": 1}, "b": {"num_examples": 2}},
            "test": {"num_examples": 3},
        },
        evaluations=[{"round": 0, **line}, {"round": 1, **line}],
        traffic=Traffic(
            so_far={1: RoundTraffic(bytes_up=30, bytes_down=50)},
            kinds={("up", "logits"): 30, ("down", "logits"): 40, ("down", "control"): 10},
            bytes_once=400,
        ),
    )
    found = module.entry_of("dirichlet_0.1", run)
    assert [(p["bytes_up"], p["bytes_down"]) for p in found["points"]] == [(0, 200), (15, 225)]
    assert found["kinds"] == {"up logits": 15, "down logits": 20, "down control": 5}


def test_bytes_of_distillation_are_told_by_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = {"up statistics": 2e3, "down statistics": 1e3, "down snapshot": 4e3, "up logits": 5e3}
    runs = []
    for seed, right in ((0, 0.6), (1, 0.8)):
        run = entry("ours", seed, [(0, 0.5, 1e4), (2, 0.7, 2e4)])
        lines = [{"round": r, "clients": right / 2, "teacher": right + r / 100} for r in (1, 2)]
        runs.append(
            run | {"bytes_once": 9e3, "kinds": kinds | {"up control": 500}, "teachers": lines}
        )
    runs.append(entry("fedavg", 0, [(0, 0.1, 0), (20, 0.8, 1e6)]))
    (tmp_path / "frontier.json").write_text(json.dumps({"runs": runs}), encoding="utf-8")
    recipe = read_yaml(BENCHMARKS / "frontier_kd.yaml")
    results = benchmark("frontier_results", monkeypatch).Results(tmp_path / "frontier", recipe, {})
    module = benchmark("frontier_distillation", monkeypatch)
    sizes = ["9.00 kB", "7.00 kB", "5.00 kB", "–", "500 B", "21.5 kB"]
    _, _, _, _, *rows = module.distillation(results, "dirichlet_0.1", ["fedavg", "ours"])
    assert [row.strip("| ").split(" | ")[1:] for row in rows if row] == [
        [*sizes, "35.0 ± 7.1 %", "71.0 ± 14.1 %", "72.0 ± 14.1 %"]
    ]
    assert module.distillation(results, "dirichlet_0.1", ["fedavg"]) == []


def entry(arm: str, seed: int, points: list[tuple[int, float, float]]) -> dict[str, Any]:
    return {
        "partition": "dirichlet_0.1",
        "arm": arm,
        "seed": seed,
        "num_train": 100,
        "num_test": 50,
        "seconds": 36.0,
        "device": "cpu",
        "dtype": "float32",
        "git_sha": None,
        "versions": {"torch": "2"},
        "points": [
            {"round": r, "accuracy": a, "bytes_up": b / 4, "bytes_down": 3 * b / 4}
            for r, a, b in points
        ],
    }


def results(path: Path, ours_bytes: float, monkeypatch: pytest.MonkeyPatch) -> Any:
    runs = []
    for seed, shift in ((0, -0.01), (1, 0.01)):
        runs += [
            entry("centralised", seed, [(0, 0.1, 0), (20, 0.9 + shift, 0)]),
            entry("fedavg", seed, [(0, 0.1, 0), (20, 0.79 + shift, 8e6), (40, 0.8 + shift, 16e6)]),
            entry("ours", seed, [(0, 0.7, 3e4), (8, 0.795 + shift, ours_bytes), (16, 0.85, 3e5)]),
        ]
    (path / "frontier.json").write_text(json.dumps({"runs": runs}), encoding="utf-8")
    return benchmark("frontier_results", monkeypatch).Results(path / "frontier", RECIPE, {})


@pytest.mark.parametrize(("ours_bytes", "ratio", "met"), [(1e5, "160", "met"), (2e5, "80", "not")])
def test_bytes_are_held_against_the_baseline_at_its_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ours_bytes: float, ratio: str, met: str
) -> None:
    found = results(tmp_path, ours_bytes, monkeypatch)
    text = found.markdown()
    target = next(line for line in text.splitlines() if "less 1 pt" in line)
    assert f"**{met}" in target
    assert f"{ratio} times fewer" in target
    row = next(line for line in text.splitlines() if line.startswith("| Ours: class means"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1] == "70.0 ± 0.0 %"  # the head alone
    assert cells[2:4] == ["85.0 ± 0.0 %", "16"]
    # The baseline itself reaches its best less one point for half of the bytes.
    assert [float(cell.rstrip("×")) for cell in cells[7:9]] == [float(ratio), float(ratio) / 2]
    share = next(line for line in text.splitlines() if "centralised accuracy" in line)
    assert "**not met**" not in share
    assert "81.0 %" in share


def test_plots_are_drawn_of_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results(tmp_path, 1e5, monkeypatch).write()
    assert (tmp_path / "frontier_dirichlet_0.1.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "frontier_dirichlet_0.5.png").exists()


@pytest.mark.parametrize("name", ["frontier_fedllm", "frontier_kd"])
def test_all_arms_are_valid_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    script = benchmark("frontier", monkeypatch).Frontier.read(name)
    recipe = script.recipe
    options = script.parse(["--runs", str(tmp_path), "--seeds", "0", "1"])
    found = script.jobs(options, tmp_path)
    assert len(found) == len(recipe["arms"]) * 2 * 2
    assert set(recipe["arms"]) == set(recipe["titles"])
    named = {*recipe["plotted"], *recipe["ours"], *recipe["baseline_schedules"]}
    named |= {*recipe["smoke"]["arms"], *(target["of"] for target in recipe["targets"])}
    assert named <= set(recipe["arms"])
    tuned = script.parse(["--runs", str(tmp_path), "--tune"])
    assert {job.seed for job in script.jobs(tuned, tmp_path)} == {recipe["tuning"]["seed"]}


def test_a_run_of_other_settings_is_not_taken_for_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = benchmark("frontier", monkeypatch).Frontier.read("frontier_fedllm")
    is_done = benchmark("frontier_jobs", monkeypatch).is_done
    options = script.parse(["--runs", str(tmp_path), "--arms", "ours"])
    job = script.jobs(options, tmp_path)[0]
    assert not is_done(job)
    job.folder.mkdir(parents=True)
    (job.folder / "config.yaml").write_text(to_yaml(job.tree), encoding="utf-8")
    (job.folder / "status.json").write_text('{"state": "finished"}', encoding="utf-8")
    assert is_done(job)
    (job.folder / "config.yaml").write_text(to_yaml({**job.tree, "rounds": 3}), encoding="utf-8")
    with pytest.raises(UserError, match="other settings"):
        is_done(job)


def test_a_command_is_kept_without_the_folders_of_the_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    results = benchmark("banking77_results", monkeypatch)
    given = ["x.py", "--data", "/my/data", "--seeds", "0", "1", "--runs", "/my/runs"]
    assert results.command(given) == "x.py --seeds 0 1"
    assert results.command(["x.py", "--smoke"]) == "x.py --smoke"
