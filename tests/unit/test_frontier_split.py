"""The benchmarks of Split-FedLLM: their arms are valid, their tables count right."""

from __future__ import annotations

import csv
import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import tiny
from trillium.config.experiment import read_yaml
from trillium.experiment.folder import RunFolder

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RECIPE = read_yaml(BENCHMARKS / "frontier_split.yaml")


def benchmark(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module(name)


def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> list[Any]:
    module = benchmark("frontier_split", monkeypatch)
    options = module.parse(RECIPE, ["--runs", str(tmp_path), *words])
    return list(module.Benchmark(RECIPE, options, tmp_path / "prepared").jobs())


def test_all_arms_are_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = jobs(tmp_path, monkeypatch, "--seeds", "0", "1")
    per_model = sum(len(arm["cuts"]) for arm in RECIPE["arms"].values())
    assert len(found) == per_model * len(RECIPE["models"]) * 2
    assert len({job.folder for job in found}) == len(found)
    for job in found:
        config = job.config()
        assert config.framework.cut == int(job.arm[-1])
        assert config.training.num_steps(24) * config.training.batch_size >= 24
        assert config.rounds == 20
        own = getattr(config.adapter, "layers", None)
        # What is frozen has no adapter, which would cost the client FLOPs and change nothing.
        alone = "cache_once" in job.arm
        assert own == (tuple(range(config.framework.cut, 6)) if alone else None)
    assert {RECIPE["baseline"], RECIPE["ours"], *RECIPE["smoke"]["arms"]} <= set(RECIPE["arms"])
    assert {job.seed for job in jobs(tmp_path, monkeypatch, "--tune")} == {RECIPE["tuning"]["seed"]}


def test_as_many_rows_of_each_class_are_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = benchmark("frontier_split", monkeypatch)
    path = tmp_path / "all.csv"
    lines = ["text,category", *(f"text {n},{'ab'[n % 2]}" for n in range(20)), "one more,c"]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with module.choose_rows(path, 4, tmp_path).open(encoding="utf-8") as file:
        kept = [row["category"] for row in csv.DictReader(file)]
    assert sorted(kept) == [*"aaaabbbbc"]
    assert kept != sorted(kept)


def entry(arm: str, cut: int, seed: int, accuracy: float, size: float, flops: float) -> Any:
    return {
        "model": "minilm",
        "label": f"{arm}_cut{cut}",
        "seed": seed,
        "accuracy": accuracy,
        "bytes_up": size / 4,
        "bytes_down": 3 * size / 4,
        "flops": flops,
        "peak_bytes": 5e6,
        "leakage": None,
        "num_train": 100,
        "num_test": 50,
        "device": "cpu",
        "dtype": "float32",
        "git_sha": None,
        "versions": {"torch": "2"},
    }


def test_targets_are_held_against_the_baseline_at_the_same_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [
        entry("splitlora", 1, 0, 0.80, 4e8, 1e12),
        entry("splitlora", 1, 1, 0.82, 4e8, 1e12),
        entry("splitlora", 2, 0, 0.80, 4e8, 2e12),
        entry("cache_once", 1, 0, 0.804, 1e6, 1.9e10),
        entry("cache_once", 1, 1, 0.808, 1e6, 1.9e10),
        entry("cache_once", 2, 0, 0.79, 4e6, 5e10),
        entry("cache_once", 3, 0, 0.79, 4e6, 5e10),  # nothing to hold it against
    ]
    (tmp_path / "frontier_split.json").write_text(json.dumps({"runs": runs}), encoding="utf-8")
    module = benchmark("frontier_split_results", monkeypatch)
    results = module.Results(tmp_path / "frontier_split", {**RECIPE, "preface": ""})
    lines = [line for line in results.markdown().splitlines() if line.startswith("- Cut")]
    assert lines == [
        "- Cut 1: 400× fewer bytes **met**, 52.6× fewer FLOPs **met**, "
        "-0.4 points over 2 seeds **met**",
        "- Cut 2: 100× fewer bytes **not met**, 40.0× fewer FLOPs **not met**, "
        "-1.0 points over 1 seed **not met**",
    ]
    results.write()
    assert (tmp_path / "frontier_split.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_is_measured_in_the_end_and_told_per_client(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tested = tiny.federation(hub, "framework=split", "framework.train=server", "rounds=2")
    make = benchmark("frontier_jobs", monkeypatch).shipped_only
    folder = tmp_path / "bert" / "cache_once_cut1_s0"
    make(tested.config, RunFolder(folder, "cache_once_cut1"))
    module = benchmark("frontier_split_results", monkeypatch)
    results = module.Results(tmp_path / "out" / "x", RECIPE)
    results.collect(tmp_path)
    [found] = json.loads((tmp_path / "out" / "x.json").read_text(encoding="utf-8"))["runs"]
    expected = tested.run()[-1]
    assert found["accuracy"] == expected["accuracy"]
    assert found["loss"] == expected["loss"]
    spent = [e for e in tested.fleet.ledger.entries if e.purpose == "train"]
    sent = sum(e.bytes for e in spent) / len(tested.clients)
    assert found["bytes_up"] + found["bytes_down"] == pytest.approx(sent)
    assert found["flops"] == pytest.approx(sum(e.flops or 0 for e in spent) / len(tested.clients))


def test_bleu_takes_as_many_references_as_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sacrebleu")
    module = benchmark("e2e_nlg", monkeypatch)
    text = "Blue Spice is a coffee shop in the city centre ."
    other = "You find a cheap pub that is called The Mill by the river ."
    assert module.bleu([text, other], [[other, text], [other]]) == pytest.approx(100)
    assert module.bleu([text, other], [[other], [text]]) < 10


def test_only_differences_that_chance_does_not_make_are_told_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("sacrebleu")
    module = benchmark("e2e_nlg", monkeypatch)
    texts = [f"place number {n} is a cheap pub by the river side" for n in range(30)]
    asked = {text: module.Meaning({}, (text,)) for text in texts}
    right = list(texts)
    wrong = [text.replace("a cheap pub by", "one dear shop in") for text in right]
    answers = {
        "centralised": wrong[:5] + right[5:],
        "mixed": right[:20] + wrong[20:26] + right[26:],  # other mistakes, one more
        "wrong": wrong,
    }
    runs = {f"{a}_s3": {"arm": a, "seed": 3, "answers": texts} for a, texts in answers.items()}
    found = module.p_values(runs, ["centralised", "mixed", "wrong", "not_run"], asked)
    assert set(found) == {"mixed", "wrong"}
    assert found["mixed"] > 0.05 > found["wrong"]
    runs["centralised_s4"] = {"arm": "centralised", "seed": 4, "answers": wrong}
    again = module.p_values(runs, ["centralised", "mixed"], asked)
    assert again["mixed"] == found["mixed"], "the seeds that both have"
    assert again["centralised"] < 0.05, "its two seeds"


def test_meanings_become_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sacrebleu")
    module = benchmark("e2e_nlg", monkeypatch)
    path = tmp_path / "rows.csv"
    mr = '"name[The Mill], priceRange[less than £20], near[The Bakers]"'
    text = "By The Bakers, The Mill is cheap."
    path.write_text(f'mr,ref\n{mr},"{text}"\n{mr},Two.\n', encoding="utf-8")
    [found] = module.meanings(path).values()
    assert found.prompt == "name: NAME; priceRange: less than £20; near: NEAR ="
    assert found.references == (text, "Two.")
    assert found.with_placeholders(text) == " By NEAR, NAME is cheap."
    assert found.filled(" By NEAR, NAME is cheap.") == text
    assert module.Meaning({}, ()).filled("NAME is cheap.") == "is cheap."
