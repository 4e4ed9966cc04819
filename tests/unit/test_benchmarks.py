"""The benchmarks: every recipe can be run, what is kept of a run reads back to its table."""

from __future__ import annotations

import csv
import importlib
import json
import math
import random
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from report_fixture import tiny_compare
from trillium.config.comparison import choices, comparison, tuning_of
from trillium.config.experiment import ExperimentConfig, acting, experiment, merge, read_yaml
from trillium.report.markdown import markdown
from trillium.report.reach import goals
from trillium.report.read import read_runs
from trillium.report.summary import summarise
from trillium.tasks import vocabulary
from trillium.wire import soft_labels

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RECIPES = sorted(BENCHMARKS.glob("*.yaml"))


def benchmark(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module(name)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_can_be_run_and_is_tuned_elsewhere(path: Path) -> None:
    tree = read_yaml(path)
    reported = comparison(tree, {})
    experiments = reported.experiments()
    assert {label for label, _ in experiments} == {*reported.arms}
    assert len({str(config.tree()) for config in experiments.values()}) == len(experiments)
    if "tuning" in tree:
        trials = tuning_of(tree, {}).experiments()
        assert {seed for _, seed in trials} == {tree["tuning"]["seed"]}
        assert {label for label, _ in trials} == {
            p for found in choices(tree).values() for p in found
        }
        assert not {seed for _, seed in trials} & {seed for _, seed in experiments}
        # Clients have as many rows as in what is reported.
        assert {*map(_held_back, trials.values())} == {*map(_held_back, experiments.values())}


def test_a_masked_sum_is_measured_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of few numbers the protocol is most; the script itself holds the sum to the whole numbers."""
    pytest.importorskip("flwr", reason="Flower is not installed (extra: deploy)")
    found = benchmark("secure_sum", monkeypatch).ours(10, 1000, 8, 48)
    assert found["bits_of_an_entry"] == 12
    assert 1500 < found["bytes_up"] < 1500 + 2200
    assert found["bytes_up_of_the_protocol"] == found["bytes_up"] - 1500
    assert 0 < found["relative_error"] < 0.03
    assert {*found["seconds_of_a_client"]} == {"mask_shares", "train", "mask_reveal", "all"}


def _held_back(config: ExperimentConfig) -> int:
    return max(config.public_size, config.data.set_aside)


def test_what_is_kept_is_what_the_recipes_run() -> None:
    for name in ("banking77", "frontier_fedllm", "frontier_kd", "frontier_split"):
        kept = json.loads((BENCHMARKS / "results" / f"{name}.json").read_text(encoding="utf-8"))
        arms = comparison(read_yaml(BENCHMARKS / f"{name}.yaml"), {}).experiments()
        own = {label: config.tree() for (label, _), config in arms.items()}
        for run in kept["runs"]:
            settings, config = run["settings"], own[run["arm"]]
            # It may have been made with what acts nowhere in it, or did not act then.
            if settings["framework"]["name"] == "split":
                settings["training"].pop("lr_factors", None)
            made = merge(config, {part: settings[part] for part in ("training", "adapter", "wire")})
            acts = experiment(acting(made, {})[0]).tree()
            for part in ("training", "adapter", "wire"):
                assert acts[part] == config[part], (run["arm"], part)
            # Whether leakage is measured is said by the command.
            framework = {k: v for k, v in settings["framework"].items() if k in config["framework"]}
            assert within({**framework, "leakage": None}, {**config["framework"], "leakage": None})
            trains = settings["framework"]["name"] != "zero_shot"
            assert settings["rounds"] == config["rounds"] or not trains


def within(part: Any, whole: Any) -> bool:
    """Whether settings that were written down are those of a tree, which may have more of them."""
    if isinstance(part, dict):
        return all(key not in whole or within(value, whole[key]) for key, value in part.items())
    if isinstance(part, list) and isinstance(whole, list):
        return len(part) == len(whole) and all(map(within, part, whole))
    return bool(part == whole)


def test_a_kept_run_reads_back_to_the_same_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = benchmark("keep", monkeypatch)
    runs = [run for run in read_runs(tiny_compare(tmp_path / "c")) if run.state == "finished"]
    monkeypatch.setattr(keep, "SETTINGS", ("framework",))
    again = [keep.run_of(json.loads(json.dumps(keep.entry_of(run)))) for run in runs]
    tables = []
    for found in (runs, again):
        rows = summarise(found)
        text = markdown("x", rows, goals(rows, [0.6, 0.85]))
        tables.append([line for line in text.splitlines() if line.startswith("|")])
    assert tables[0] == tables[1]
    assert "B" in tables[0][2].split(" | ")[-4]
    given = [
        "trillium",
        "compare",
        "x.yaml",
        "--out",
        "/my/runs",
        "--data=/my/rows",
        "--seeds",
        "1",
    ]
    assert keep.command(given) == "trillium compare x.yaml --seeds 1"


def test_as_many_rows_of_each_class_are_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sacrebleu")
    path = tmp_path / "all.csv"
    lines = ["text,category", *(f"text {n},{'ab'[n % 2]}" for n in range(20)), "one more,c"]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    benchmark("prepare", monkeypatch).choose_rows(path, 4, tmp_path / "train.csv")
    with (tmp_path / "train.csv").open(encoding="utf-8") as file:
        kept = [row["category"] for row in csv.DictReader(file)]
    assert sorted(kept) == [*"aaaabbbbc"]
    assert kept != sorted(kept)


def test_topics_are_those_of_all_intents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sacrebleu")
    prepare = benchmark("prepare", monkeypatch)
    topics = prepare.topics_of()
    assert (len(topics), len({*topics.values()})) == (77, 6)
    (tmp_path / "banking77").mkdir()
    for split in ("train", "test"):
        rows = [{"text": f"{split} {name}", "category": name} for name in topics]
        prepare.write_csv(rows, tmp_path / "banking77" / f"{split}.csv")
    prepare.kd_label_skew(tmp_path, tmp_path)
    for split in ("train", "test"):
        intents, own = (
            [*csv.DictReader((tmp_path / f"{kind}_{split}.csv").open(encoding="utf-8"))]
            for kind in ("intents", "topics")
        )
        assert [row["text"] for row in intents] == [row["text"] for row in own]
        assert len(own) == 77
        assert all(
            topics[a["category"]] == b["category"] for a, b in zip(intents, own, strict=True)
        )


def test_no_attributes_are_learnt_and_tested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sacrebleu")
    prepare = benchmark("prepare", monkeypatch)
    draw = random.Random(0)
    rows = [(f"place {draw.randrange(30)}", "It is one.", kind) for kind in prepare.PLACES * 40]
    prepare.write_places(rows, tmp_path, of_a_client=6, num_test=9, num_public=6)
    train, test = (
        [json.loads(line) for line in (tmp_path / f"{split}.jsonl").read_text().splitlines()]
        for split in ("train", "test")
    )
    assert (len(train), len(test)) == (3 * (6 + 2), 9)
    for kind in prepare.PLACES:
        asked = {row["prompt"] for row in test if row["client"] == kind}
        assert not asked & {row["prompt"] for row in train if row["client"] == kind}


def test_bits_per_byte_do_not_depend_on_the_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    script = benchmark("kd_language_models", monkeypatch)

    class Tokenizer:
        bos_token_id, eos_token_id = None, 0

        def __init__(self, width: int) -> None:
            self.width = width

        def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
            return {"input_ids": [1] * (len(text) // self.width)}

    rows = script.Dataset.from_dict({"prompt": ["abcd"], "completion": ["abcdefgh"]})
    found = {}
    for width in (1, 4):
        # Each byte costs one bit, and the end nothing.
        num_tokens = 8 // width + 1
        loss = 8 * math.log(2) / num_tokens
        found[width] = script.bits_per_byte(loss, rows, Tokenizer(width), 64)
    assert found == {1: pytest.approx(1.0), 4: pytest.approx(1.0)}


def test_the_tables_of_language_models_are_those_of_what_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("kd_language_models", "e2e_nlg"):
        path = BENCHMARKS / "results" / f"{name}.json"
        content = json.loads(path.read_text(encoding="utf-8"))
        text = benchmark(f"{name}_report", monkeypatch).markdown(content)
        assert text == path.with_suffix(".md").read_text(encoding="utf-8")
    arms = comparison(read_yaml(BENCHMARKS / "kd_language_models.yaml"), {}).arms
    titles = benchmark("kd_language_models_report", monkeypatch).TITLES
    assert {arm for arm in arms if not arm.startswith("before_")} == {*titles}


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


def test_parts_stay_as_large_while_the_vocabulary_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    script = benchmark("kd_memory", monkeypatch)
    monkeypatch.setattr(soft_labels, "CHUNK", 2**18)
    monkeypatch.setattr(vocabulary, "CHUNK", 2**18)
    for name, value in {"TOKENS": 8, "NUM_PUBLIC": 6, "BATCH": 4}.items():
        monkeypatch.setattr(script, name, value)
    small, large = script.measure(9_000), script.measure(27_000)
    own = ("own step", "evaluate")
    for step in (*script.PATH, *own):
        assert large[step] < 1.3 * small[step] + 2**19, step
    # What has all logits of a batch at once is noticed.
    monkeypatch.setattr(vocabulary, "WIDE", 10**6)
    small, large = script.measure(9_000), script.measure(27_000)
    for step in own:
        assert large[step] > 2.5 * small[step], step


def test_the_table_of_memory_is_that_of_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    path = BENCHMARKS / "results" / "kd_memory.json"
    text = benchmark("kd_memory", monkeypatch).markdown(json.loads(path.read_text("utf-8")))
    assert text == path.with_suffix(".md").read_text(encoding="utf-8")


def test_what_the_leaderboard_would_cost_is_in_the_documents(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script = benchmark("leaderboard", monkeypatch)
    path = BENCHMARKS / "results" / "leaderboard.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    text = script.markdown(content)
    assert text == path.with_suffix(".md").read_text(encoding="utf-8")
    table = text.partition("\n\n| ")[2].strip()
    assert table in (BENCHMARKS.parent / "docs" / "llm.md").read_text(encoding="utf-8")
    for found in content[
        "found"
    ]:  # the rank and rounds do give what was reported, to its two digits
        planned = found["arms"]["as submitted"]["bytes"] / script.GIB
        assert found["reported"] == pytest.approx(planned, abs=0.05 + 0.07 * planned)
