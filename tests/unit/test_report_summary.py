"""Arms as mean ± standard deviation, the terminal's table, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from report_fixture import tiny_compare, tiny_messages, tiny_metrics, wire, write_run
from trillium.report import human
from trillium.report.markdown import markdown
from trillium.report.measures import MEASURES
from trillium.report.reach import goals
from trillium.report.read import read_runs
from trillium.report.summary import Row, Stat, shown, summarise
from trillium.report.table import terminal_table, to_csv, to_dict


@pytest.fixture
def rows(tmp_path: Path) -> list[Row]:
    return summarise(read_runs(tiny_compare(tmp_path / "c")))


def means(row: Row) -> dict[str, float]:
    return {name: stat.mean for name, stat in row.values.items()}


def test_the_sums_are_those_done_by_hand(rows: list[Row]) -> None:
    fedllm, zero = rows
    assert means(fedllm) == pytest.approx(
        {
            "accuracy": 0.85,
            "loss": 0.15,
            "bytes_up_per_client_round": 110,
            "bytes_down_per_client_round": 50,
            "bytes_per_client": 240,
            "flops_per_client": 3000,
            "peak_bytes_client": 700,
            "seconds_per_client": 3,
            "wall_seconds": 20,
            "bytes_once_per_client": 1000,
            "bytes_once_on_wire_per_client": 200,
            "num_answers_per_client_round": 1,
            "compression": 810 / 480,
        }
    )
    assert means(zero) == pytest.approx(
        {
            "accuracy": 0.5,
            "loss": 0.5,
            "bytes_up_per_client_round": 0,
            "bytes_down_per_client_round": 0,
            "bytes_per_client": 0,
            "wall_seconds": 0,
            "bytes_once_per_client": 1024,
            "bytes_once_on_wire_per_client": 0,
            "num_answers_per_client_round": 0,
        }
    )


def test_finished_seeds_count_and_the_deviation_is_the_sample_one(rows: list[Row]) -> None:
    fedllm, zero = rows
    # 0.8 and 0.9: squares of ±0.05 sum to 0.005, over n - 1 = 1. The failed seed's 0.1 is not in.
    assert fedllm.values["accuracy"].sd == pytest.approx(math.sqrt(0.005))
    assert fedllm.values["accuracy"].num == 2
    assert zero.values["accuracy"].sd is None
    assert fedllm.state == "2 finished, 1 failed"
    assert shown(fedllm, "accuracy") == "85.0 ± 7.1 %"
    assert shown(zero, "flops_per_client") == "–"


def test_an_arm_without_a_finished_run_shows_how_far_it_came(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", "kd", 1, tiny_metrics(0.5, 0.6), tiny_messages(), "failed")
    (row,) = summarise(read_runs(folder))
    assert row.values["accuracy"].mean == 0.6
    assert row.state == "failed"
    assert not row.is_finished


def test_language_modelling_and_the_clients_own_models(tmp_path: Path) -> None:
    metrics: list[dict[str, Any]] = [
        {"round": 0, "perplexity": 40.0, "exact_match": 0.0, "accuracy": None},
        {
            "round": 1,
            "perplexity": 12.5,
            "exact_match": 0.25,
            "clients": {"client-0": {"accuracy": 0.2}, "client-1": {"accuracy": 0.6}},
        },
    ]
    (row,) = summarise(read_runs(write_run(tmp_path / "a", "kd", 1, metrics)))
    found = means(row)
    assert "accuracy" not in found
    assert found["perplexity"] == 12.5
    assert found["exact_match"] == 0.25
    assert found["clients_accuracy"] == pytest.approx(0.4)
    assert found["clients_accuracy_min"] == 0.2


def test_training_compute_without_bytes_is_local_training(tmp_path: Path) -> None:
    message = wire(1, "client-0", "up", {}, flops=4000)
    folder = write_run(tmp_path / "a", "local-only", 1, tiny_metrics(0.5, 0.6), [message])
    (row,) = summarise(read_runs(folder))
    assert row.values["bytes_per_client"].mean == 0
    assert row.values["flops_per_client"].mean == 2000  # over both clients
    assert "compression" not in row.values


def test_a_diverged_seed_makes_a_diverged_mean() -> None:
    stat = Stat.of([1.0, math.inf])
    assert stat is not None
    assert stat.mean == math.inf
    assert stat.sd is not None
    assert math.isnan(stat.sd)
    assert human.plain(stat.mean, stat.sd) == "inf ± nan"
    assert Stat.of([None, None]) is None


@pytest.mark.parametrize(("width", "must"), [(120, "Peak"), (80, "Compute")])
def test_the_table_fits_the_terminal(tmp_path: Path, width: int, must: str) -> None:
    folder = tmp_path / "c"
    tiny_compare(folder)
    label = "fedllm [bold]int8[/bold] with a label as long as they come"
    write_run(folder / "x_s1", label, 1, tiny_metrics(0.1, 0.2), tiny_messages(), started="3")
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(terminal_table(summarise(read_runs(folder)), width))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    assert must in text
    assert "85.0 ± 7.1 %" in text
    assert "3.00 kFLOPs" in text
    assert "[bold]" in text.replace("\n", "")  # a label is text, not markup
    assert "…" not in text  # nothing is cut
    assert "in table.csv also: Loss" in text


def test_csv_holds_plain_numbers_under_names_with_units(rows: list[Row]) -> None:
    lines = list(csv.DictReader(io.StringIO(to_csv(rows))))
    assert [line["arm"] for line in lines] == ["fedllm", "zero-shot"]
    assert float(lines[0]["bytes_up_per_client_round"]) == 110
    assert float(lines[0]["accuracy_sd"]) == pytest.approx(math.sqrt(0.005))
    assert lines[0]["seeds"] == "1 2"
    assert lines[1]["flops_per_client"] == lines[1]["accuracy_sd"] == ""
    assert all(measure.name in lines[0] for measure in MEASURES)


def test_json_is_strict_json(rows: list[Row]) -> None:
    rows[0].values["loss"] = Stat(math.nan, math.nan, 2)  # type: ignore[index]
    found = json.loads(json.dumps(to_dict(rows), allow_nan=False))
    assert found["arms"][0]["measures"]["bytes_per_client"] == {"mean": 240, "sd": 0, "num": 2}
    assert found["arms"][0]["measures"]["loss"]["mean"] is None
    assert found["arms"][1]["seeds"] == [1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (human.prefixed(0, "B"), "0 B"),
        (human.prefixed(999, "B"), "999 B"),
        (human.prefixed(999_499, "B"), "999 kB"),
        (human.prefixed(999_600, "B"), "1.00 MB"),
        (human.prefixed(3.42e12, "FLOPs"), "3.42 TFLOPs"),
        (human.prefixed(1.25e6, "B", 3e4), "1.25 ± 0.03 MB"),
        (human.prefixed(1.25e6, "B", 0.0), "1.25 MB"),
        (human.significant(9.996), "10.0"),
        (human.significant(0.012345), "0.0123"),
        (human.duration(0.42), "0.420 s"),
        (human.duration(7.27e-6), "7.27 µs"),
        (human.duration(0.0123), "12.3 ms"),
        (human.duration(0.0123, 0.001), "12.3 ± 1.0 ms"),
        (human.duration(0), "0 s"),
        (human.duration(185), "3 min 05 s"),
        (human.duration(7500), "2 h 05 min"),
        (human.duration(7199.7), "2 h"),
        (human.percent(0.8812, 0.0041), "88.1 ± 0.4 %"),
        (human.plain(1.1391, 0.0042), "1.139 ± 0.004"),
    ],
)
def test_numbers_read_well(text: str, expected: str) -> None:
    assert text == expected


def test_bytes_until_an_accuracy_is_there_are_told(rows: list[Row]) -> None:
    # 200 bytes once, 160 in the first round, 80 in the second; 60 %, then 85 % over the seeds.
    early, late, never = goals(rows, [0.6, 0.85, 0.86])
    assert early.reached == {"fedllm": (1, 360.0)}
    assert late.reached == {"fedllm": (2, 440.0)}
    assert never.reached == {}
    [line, other] = csv.DictReader(io.StringIO(to_csv(rows, [late, never])))
    assert (line["bytes_to_accuracy_0.85"], line["bytes_to_accuracy_0.86"]) == ("440.0", "")
    assert other["bytes_to_accuracy_0.85"] == ""
    assert to_dict(rows, [late])["arms"][0]["reached"] == {
        "bytes_to_accuracy_0.85": {"round": 2, "bytes": 440.0}
    }
    assert "| 360 B | 440 B |" in markdown("x", rows, [early, late])
    assert goals(rows) == [], "nobody to be held against"
