"""Run folders read back: sums by hand, torn lines, missing files, folders that are neither."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from report_fixture import tiny_compare, tiny_messages, tiny_metrics, wire, write_run
from trillium.errors import UserError
from trillium.report.read import Run, read_runs
from trillium.report.traffic import RoundTraffic


def read_one(folder: Path) -> Run:
    (run,) = read_runs(folder)
    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_run(tmp_path / "a", "fedllm", 1, tiny_metrics(0.5, 0.6, 0.8), tiny_messages())


def test_the_ledger_is_summed_by_round_kind_and_client(folder: Path) -> None:
    run = read_one(folder)
    traffic = run.traffic
    assert traffic is not None
    assert traffic.until(0) == RoundTraffic()
    assert traffic.until(1) == RoundTraffic(220, 100, 3000.0, 3.0)
    assert traffic.until(2) == traffic.until() == RoundTraffic(330, 150, 6000.0, 6.0)
    assert traffic.kinds == {
        ("up", "parameters"): 300,
        ("up", "control"): 30,
        ("down", "parameters"): 135,
        ("down", "control"): 15,
    }
    assert traffic.num_turns == 3
    assert traffic.num_answers == 3
    assert traffic.bytes_raw == 810
    assert traffic.bytes_once == 400
    assert traffic.peak_bytes == 700
    assert run.num_clients == 2
    assert run.notes == ()


def test_a_torn_last_line_is_left_out_and_said(folder: Path) -> None:
    for name in ("metrics.jsonl", "wire.jsonl"):
        path = folder / name
        path.write_text(path.read_text() + '{"round": 3, "acc')
    run = read_one(folder)
    assert run.last("accuracy") == 0.8
    assert run.traffic is not None
    assert run.traffic.until().bytes_up == 330
    assert run.notes == (
        "metrics.jsonl: 1 unreadable line(s) left out (line 4)",
        "wire.jsonl: 1 unreadable line(s) left out (line 9)",
    )


def test_a_line_that_lacks_a_field_counts_in_no_sum(folder: Path) -> None:
    line = wire(2, "client-1", "up", {"parameters": 10**6})
    del line["bytes_raw"]
    with (folder / "wire.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    run = read_one(folder)
    assert run.traffic is not None
    assert run.traffic.until().bytes_up == 330
    assert run.traffic.num_turns == 3
    assert run.notes == ("wire.jsonl: 1 lines lack a field and were left out",)


def test_a_round_evaluated_again_after_a_resume_counts_once(folder: Path) -> None:
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"round": 1, "accuracy": 0.7}) + "\n")
    rounds = [(line["round"], line["accuracy"]) for line in read_one(folder).evaluations]
    assert rounds == [(0, 0.5), (1, 0.7), (2, 0.8)]


def test_a_lost_ledger_is_unknown_and_not_nothing(folder: Path) -> None:
    (folder / "wire.jsonl").unlink()
    run = read_one(folder)
    assert run.traffic is None
    assert any("wire.jsonl is missing" in note for note in run.notes)


def test_a_baseline_without_a_ledger_sent_nothing(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "zero", "zero-shot", 1, tiny_metrics(0.5))
    (folder / "wire.jsonl").unlink()
    run = read_one(folder)
    assert run.traffic is not None
    assert run.traffic.until() == RoundTraffic()
    assert run.notes == ()


def test_a_folder_with_a_broken_status_alone_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "fedllm_s7"
    folder.mkdir()
    (folder / "status.json").write_text('{"state": "runn')
    run = read_one(folder)
    assert (run.arm, run.seed, run.state) == ("fedllm", 7, "unknown")
    assert run.traffic is None
    assert "status.json could not be read" in run.notes
    assert "config.yaml is missing" in run.notes


def test_runs_of_a_comparison_come_in_the_order_in_which_they_started(tmp_path: Path) -> None:
    runs = read_runs(tiny_compare(tmp_path / "c"))
    assert [(run.arm, run.seed, run.state) for run in runs] == [
        ("fedllm", 1, "finished"),
        ("fedllm", 2, "finished"),
        ("fedllm", 3, "failed"),
        ("zero-shot", 1, "finished"),
    ]


def test_other_folders_are_refused_with_what_to_write_instead(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        read_runs(tmp_path / "nowhere")
    write_run(tmp_path / "runs" / "mine", "fedllm", 1, tiny_metrics(0.5))
    with pytest.raises(UserError, match="Name one of the runs in it: mine"):
        read_runs(tmp_path / "runs")
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "compare.yaml").write_text("{}")
    with pytest.raises(UserError, match="not begun its first run"):
        read_runs(tmp_path / "new")
