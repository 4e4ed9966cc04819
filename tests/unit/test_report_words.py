"""What a page says beside figures: the outcome, the best, what arms change, classes and answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from report_fixture import tiny_compare, tiny_messages, tiny_metrics, wire, write_lines, write_run
from trillium.report import human
from trillium.report.page.changes import changed
from trillium.report.page.charts import charts
from trillium.report.page.held_out import classes, texts
from trillium.report.page.results import results
from trillium.report.read import read_runs
from trillium.report.style import arm_colours
from trillium.report.summary import Row, families, summarise
from trillium.report.words import costs, next_steps, outcome, title
from trillium.report.write import write_report


def rows_of(folder: Path) -> list[Row]:
    return summarise(read_runs(folder))


def test_each_arm_is_held_against_the_first_as_a_diff(tmp_path: Path) -> None:
    (change,) = changed(rows_of(tiny_compare(tmp_path / "c")))
    assert change.arm == "zero-shot"
    assert change.lines == [("-", "framework.name: fedllm"), ("+", "framework.name: zero-shot")]


def test_frameworks_come_before_baselines_and_have_their_hues(tmp_path: Path) -> None:
    for index, name in enumerate(("zero_shot", "kd", "fedllm", "fedllm")):
        label, config = f"{name}-{index}", {"framework": {"name": name}, "rounds": 2}
        write_run(
            tmp_path / f"c/{label}_s1",
            label,
            1,
            tiny_metrics(0.5, 0.6),
            config=config,
            started=str(index),
        )
    (tmp_path / "c" / "compare.yaml").write_text("{}")
    rows = rows_of(tmp_path / "c")
    assert [row.arm for row in rows] == ["kd-1", "fedllm-2", "fedllm-3", "zero_shot-0"]
    found = {arm: light for arm, (light, _) in arm_colours(families(rows)).items()}
    assert found["kd-1"] == "#D55E00"
    assert found["fedllm-2"] == "#0072B2"
    assert len({*found.values()}) == 4
    red, green, blue = (int(found["zero_shot-0"][at : at + 2], 16) for at in (1, 3, 5))
    assert red == green == blue


def test_the_best_of_the_frameworks_is_marked_and_one_seed_has_an_interval(tmp_path: Path) -> None:
    folder = tiny_compare(tmp_path / "c")
    write_run(folder / "kd_s1", "kd", 1, tiny_metrics(0.5, 0.75), tiny_messages()[:6], started="3")
    columns, lines = results(rows_of(folder), ())
    at = {column.title: place for place, column in enumerate(columns)}
    accuracy = {line.row.arm: line.cells[at["Accuracy"]] for line in lines}
    size = {line.row.arm: line.cells[at["Bytes"]] for line in lines}
    assert {arm for arm, cell in accuracy.items() if cell.best} == {"fedllm"}
    assert {arm for arm, cell in size.items() if cell.best} == {"kd"}, "a baseline sends nothing"
    assert accuracy["fedllm"].interval == "", "of two seeds"
    # Wilson's interval of 6 of 8, as R's prop.test(6, 8, correct = FALSE) has it.
    assert accuracy["kd"].interval == "[40.9, 92.9]"


def test_the_outcome_is_told_in_a_sentence(tmp_path: Path) -> None:
    folder = tiny_compare(tmp_path / "c")
    few = [wire(1, "client-0", "up", {"logits": 24}), wire(1, "client-1", "down", {"logits": 24})]
    write_run(folder / "kd_s1", "kd", 1, tiny_metrics(0.5, 0.84), few, started="3")
    said = outcome(rows_of(folder))
    assert said[0] == (
        "fedllm is the best of 2 federated arms with 85.0 ± 7.1 % accuracy, for 240 B up and down "
        "per client."
    )
    assert said[1] == "kd reaches 84.0 % for 10 times fewer bytes (24 B)."
    assert said[2] == "For comparison: zero-shot 50.0 % accuracy [21.5, 78.5]."
    config = {
        "task": "classification",
        "model": {"id": "/models/bert-tiny"},
        "rounds": 2,
        "framework": "kd",
        "data": {"source": {"name": "files", "train": "/home/me/mails.csv"}},
    }
    rows = rows_of(write_run(tmp_path / "a", "kd", 1, tiny_metrics(0.5, 0.6), few, config=config))
    assert title(rows) == "Text classification of mails.csv with bert-tiny, 1 round"
    assert outcome(rows) == [
        "kd reaches 60.0 % accuracy [28.7, 84.8] after 1 round, for 24 B up and down per client."
    ]


def test_costs_are_told_and_what_comes_next(tmp_path: Path) -> None:
    argv = ["/bin/trillium", "compare", "my recipe.yaml"]
    for arm, messages in (("fedllm", tiny_messages()), ("split", tiny_messages()[:6])):
        made = write_run(tmp_path / f"c/{arm}_s1", arm, 1, tiny_metrics(0.5, 0.6), messages)
        (made / "env.json").write_text(json.dumps({"argv": argv}))
    (tmp_path / "c" / "compare.yaml").write_text("{}")
    rows = rows_of(tmp_path / "c")
    sent = {row.arm: 8 * row.values["bytes_per_client"].mean / 10e6 for row in rows}
    least, link = costs(rows)
    assert least.startswith("split has the least to compute at a client, ")
    assert link == (
        "Over a link of 10 Mbit/s, the messages of a client take: "
        f"fedllm {human.duration(sent['fedllm'])}, split {human.duration(sent['split'])}."
    )
    assert [command for _, command in next_steps(rows)] == [
        "trillium compare 'my recipe.yaml' --seeds 3"
    ]


def test_arms_that_are_equal_are_told_apart_by_what_differs(tmp_path: Path) -> None:
    for label, perplexity in (("fedllm", 9.0), ("kd", 12.0)):
        lines = [{"round": n, "exact_match": 0.0, "perplexity": perplexity - n} for n in (0, 1)]
        write_run(tmp_path / f"c/{label}_s1", label, 1, lines, tiny_messages())
    (tmp_path / "c" / "compare.yaml").write_text("{}")
    said = outcome(rows_of(tmp_path / "c"))
    assert said[0].startswith("fedllm is the best of 2 federated arms with 8.00 perplexity")
    for folder in (tmp_path / "c").glob("*_s1"):
        write_lines(folder / "metrics.jsonl", [{"round": 1, "accuracy": 0.5, "num_examples": 10}])
    (alike,) = outcome(rows_of(tmp_path / "c"))
    assert alike == "All 2 federated arms come to 50.0 % accuracy [23.7, 76.3]."


def test_classes_and_answers_are_those_of_the_run(tmp_path: Path) -> None:
    folder = tiny_compare(tmp_path / "c")
    for seed, wrong in ((1, 1), (2, 3)):
        known = {"confusion": [[0, 0, 3], [1, 0, wrong], [1, 1, 2]]}
        (folder / f"fedllm_s{seed}" / "answers.json").write_text(json.dumps(known))
    (found,) = classes(rows_of(folder))
    assert (found.arm, found.num_seeds) == ("fedllm", 2)
    assert [(one.label, one.num_rows, one.recall, one.precision) for one in found.results] == [
        ("yes", 8, 0.5, 1.0),
        ("no", 6, 1.0, 0.6),
    ]
    (pair,) = found.confused
    assert (pair.label, pair.taken_for, pair.times, pair.num_rows) == ("yes", "no", 4, 8)
    page = write_report(folder).read_text(encoding="utf-8")
    assert "<b>yes</b> taken for <b>no</b>: 4 of 8" in page
    for broken in ('{"confusion": [[0, 7, 1]]}', '{"confusion": 3}', '["x"]', "{"):
        for seed in (1, 2):
            (folder / f"fedllm_s{seed}" / "answers.json").write_text(broken)
        assert classes(rows_of(folder)) == []
        assert write_report(folder).is_file()
    text = {"texts": [{"prompt": "<b>2+2</b>", "reference": "4", "answer": "4"}]}
    (folder / "fedllm_s1" / "answers.json").write_text(json.dumps(text))
    page = write_report(folder).read_text(encoding="utf-8")
    assert "&lt;b&gt;2+2&lt;/b&gt;" in page
    assert "✓ equal" in page
    other = {"texts": [{**text["texts"][0], "answer": "five"}], "client": "client-1"}
    (folder / "zero-shot_s1" / "answers.json").write_text(json.dumps(other))
    (shown,) = texts(rows_of(folder))
    said = [(answer.arm, answer.text, answer.client) for answer in shown.answers]
    assert said == [("fedllm", "4", ""), ("zero-shot", "five", "client-1")]
    assert "zero-shot (client-1)" in write_report(folder).read_text(encoding="utf-8")


def test_curves_are_given_to_the_page_as_numbers(tmp_path: Path) -> None:
    found = charts(rows_of(tiny_compare(tmp_path / "c")))
    assert [axis["key"] for axis in found["axes"]] == ["rounds", "bytes", "flops", "memory"]
    assert [measure["key"] for measure in found["measures"]] == ["accuracy"]
    moving, level = found["curves"]["bytes"]["accuracy"]
    assert moving["x"] == [160, 240], "no zero on a logarithmic axis"
    assert moving["y"] == pytest.approx([0.6, 0.85])
    assert moving["sd"] == pytest.approx([0.0, 0.005**0.5])
    assert level["level"] == 0.5
    assert found["curves"]["memory"]["accuracy"][0]["x"] == [700]
    json.dumps(found, allow_nan=False)
