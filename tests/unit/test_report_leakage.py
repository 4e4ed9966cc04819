"""Leakage in reports: the figures of a run, and a picture against the depth of the cut."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import image

from report_fixture import tiny_compare, tiny_messages, tiny_metrics, write_run
from trillium.report.depth import plot_leakage
from trillium.report.measures import BY_NAME
from trillium.report.read import read_runs
from trillium.report.style import quiet_style
from trillium.report.summary import Row, shown, summarise
from trillium.report.table import terminal_table, to_csv
from trillium.report.write import write_report


def write_split(
    folder: Path, arm: str, cut: int, recovered: float, seed: int = 1, **others: Any
) -> Path:
    """A run of a split whose attacker recovers so much."""
    metrics = tiny_metrics(0.5, 0.6, 0.5 + cut / 10)
    metrics[-1] |= {
        "leakage": {
            "nearest_accuracy": recovered / 2,
            "inverter_accuracy": recovered,
            "inverter_rouge_l": recovered,
            "distance_correlation": 0.654321,
        },
        **others.pop("line", {}),
    }
    config = {
        "framework": {"name": "split", "cut": cut, **others},
        "adapter": {"name": "lora", "layers": list(range(cut, 4))},
        "rounds": 2,
    }
    return write_run(folder, arm, seed, metrics, tiny_messages(), config=config)


def comparison(folder: Path) -> Path:
    """Two cuts of two seeds, the same with a defence at one cut, and an arm that has no cut."""
    tiny_compare(folder)
    for seed, change in ((1, 0.0), (2, 0.1)):
        write_split(folder / f"shallow_s{seed}", "shallow", 1, 0.8 + change, seed)
        write_split(folder / f"deep_s{seed}", "deep", 3, 0.3 + change, seed)
    epsilon = {"epsilon_token": 12.5, "epsilon_text": 70.0}
    defence = {"name": "gaussian", "noise": 0.5}
    write_split(folder / "noise_s1", "noise", 3, 0.1, line=epsilon, defence=defence)
    return folder


def rows_of(folder: Path) -> dict[str, Row]:
    return {row.arm: row for row in summarise(read_runs(folder))}


def test_a_run_tells_what_it_gave_away(tmp_path: Path) -> None:
    rows = rows_of(comparison(tmp_path / "c"))
    assert shown(rows["shallow"], "inverter_accuracy") == "85.0 ± 7.1 %"
    assert shown(rows["shallow"], "nearest_accuracy") == "42.5 ± 3.5 %"
    assert shown(rows["noise"], "distance_correlation") == "0.654"
    assert shown(rows["noise"], "epsilon_token") == "12.5"
    assert shown(rows["noise"], "epsilon_text") == "70.0"
    assert shown(rows["deep"], "epsilon_text") == shown(rows["fedllm"], "nearest_accuracy") == "–"


def test_the_page_and_the_tables_have_it(tmp_path: Path) -> None:
    folder = comparison(tmp_path / "c")
    page = write_report(folder).read_text(encoding="utf-8")
    for name in ("nearest_accuracy", "inverter_accuracy", "distance_correlation", "epsilon_text"):
        assert BY_NAME[name].title in page
        assert BY_NAME[name].definition in page
    assert BY_NAME["label_norm_auc"].title not in page, "no run has it"
    assert "85.0 ± 7.1 %" in page
    assert 'id="leakage"' in page
    assert image.imread(BytesIO((folder / "plots" / "leakage.png").read_bytes())).std() > 0.05
    rows = [*rows_of(folder).values()]
    assert "0.654321" in to_csv(rows)
    assert "Inverted" in [str(column.header) for column in terminal_table(rows, 200).columns]


def test_without_leakage_there_is_no_word_of_it(tmp_path: Path) -> None:
    folder = tiny_compare(tmp_path / "c")
    page = write_report(folder).read_text(encoding="utf-8")
    assert BY_NAME["inverter_accuracy"].title not in page
    assert not (folder / "plots" / "leakage.png").exists()


def test_points_stand_at_their_cut_and_lines_join_what_is_alike(tmp_path: Path) -> None:
    rows = rows_of(comparison(tmp_path / "c"))
    with quiet_style():
        figure = plot_leakage([*rows.values()])
    assert figure is not None
    panels = {title: axes for axes in figure.axes if (title := axes.get_title("left"))}
    assert list(panels) == [
        BY_NAME[name].title
        for name in ("accuracy", "nearest_accuracy", "inverter_accuracy", "inverter_rouge_l",
                     "distance_correlation")
    ]  # fmt: skip
    axes = panels[BY_NAME["inverter_accuracy"].title]
    joined = [line for line in axes.lines if line.get_linestyle() == "-"]
    ends = [np.asarray(line.get_ydata()).tolist() for line in joined]
    assert sorted(ends) == [[0.1], [pytest.approx(0.85), pytest.approx(0.35)]]
    for line in joined:
        cuts = np.round(np.asarray(line.get_xdata())).tolist()
        assert cuts == ([3] if len(cuts) == 1 else [1, 3])
    legend = {text.get_text() for text in figure.legends[0].get_texts()}
    assert legend == {"shallow", "deep", "noise"}


def test_one_depth_is_no_picture(tmp_path: Path) -> None:
    folder = tiny_compare(tmp_path / "c")
    write_split(folder / "a_s1", "a", 2, 0.8)
    write_split(folder / "b_s1", "b", 2, 0.7, defence={"name": "gaussian"})
    assert plot_leakage([*rows_of(folder).values()]) is None
    alone = write_split(tmp_path / "alone", "split", 2, 0.8, line={"leakage": "lost"})
    assert plot_leakage([*rows_of(alone).values()]) is None
    assert write_report(alone).is_file()
