"""The written report: what is in it, that it needs nothing beside it, and that labels stay text."""

from __future__ import annotations

import json
import subprocess
import sys
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import image

from report_fixture import tiny_compare, tiny_messages, tiny_metrics, wire, write_run
from trillium.report.bars import bytes_by_kind
from trillium.report.config_view import differing_paths, marked_yaml
from trillium.report.costs import bytes_per_client
from trillium.report.curves import curve, plot_bytes
from trillium.report.partition import label_counts, plot_partition
from trillium.report.plots import PLOT_NAMES, draw_plots
from trillium.report.progress import missing_clients, round_table
from trillium.report.read import number, read_runs
from trillium.report.style import quiet_style
from trillium.report.summary import summarise
from trillium.report.write import write_report


class Page(HTMLParser):
    """Collects the tags, the addresses and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(folder: Path) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


def test_the_report_of_a_comparison(tmp_path: Path) -> None:
    folder = tiny_compare(tmp_path / "c")
    page = page_of(folder)
    assert "85.0 ± 7.1 %" in page.text
    assert "client-1 ran out of memory" in page.text
    assert "2 finished, 1 failed" in page.text
    assert "trillium compare 'my config.yaml'" in page.text
    assert f"trillium run {folder / 'fedllm_s1' / 'config.yaml'}" in page.text
    assert "2.13.0" in page.text
    names = [name for name in PLOT_NAMES if name != "leakage"]
    assert page.tags.count("img") == 2, "the partition, and the curves for readers without scripts"
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    for name in names:
        pixels = image.imread(BytesIO((folder / "plots" / f"{name}.png").read_bytes()))
        assert pixels.std() > 0.05, f"{name} is empty"
    assert (folder / "table.csv").read_text().startswith("arm,framework,")
    left = {path.name for path in folder.iterdir() if path.is_file()}
    assert left == {"compare.yaml", "table.csv", "table.md", "report.html"}


@pytest.mark.parametrize("sums", ["masked", {"name": "masked", "bits": 8}])
def test_masks_are_named_with_what_they_do_not_hide(tmp_path: Path, sums: Any) -> None:
    own = {"framework": {"name": "fedllm"}, "rounds": 1, "sums": sums, "fleet": {"min_replies": 7}}
    folder = write_run(tmp_path / "run", "fedllm", 0, tiny_metrics(0.5), config=own)
    said = " ".join(page_of(folder).text.split())
    assert "semi-honest server sees what 7 clients of a round, or more, add up to" in said
    assert "masks hide nothing" in said
    plain = write_run(tmp_path / "plain", "fedllm", 0, tiny_metrics(0.5))
    assert "semi-honest" not in page_of(plain).text


def test_the_same_runs_give_the_same_report(tmp_path: Path) -> None:
    folder = tiny_compare(tmp_path / "c")
    first = write_report(folder).read_bytes()
    assert write_report(folder).read_bytes() == first
    metrics = folder / "fedllm_s1" / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace("0.6", "0.7"))
    assert write_report(folder).read_bytes() != first


def test_whatever_users_name_stays_text(tmp_path: Path) -> None:
    bad = "<script>alert(1)</script>"
    metrics = tiny_metrics(0.5, 0.6)
    metrics[1]["missing"] = {bad: f"{bad} & timed out"}
    metrics[1]["shipped"] = bad
    folder = write_run(
        tmp_path / "<b>run", bad, 1, metrics, [wire(1, bad, "up", {bad: 5})], "failed", bad,
        config={bad: bad, "framework": {"name": bad}}, clients={bad: {bad: 3}}, once={bad: 3},
    )  # fmt: skip
    (folder / "env.json").write_text(
        json.dumps({"versions": {bad: bad}, "device": bad, "argv": ["/opt/x/trillium", bad]})
    )
    page = page_of(folder)
    assert page.tags.count("script") == 4, "uPlot, two of the page's own, and the data of curves"
    assert "<b>run" in page.text
    assert page.text.count(bad) > 10
    assert "&amp;lt;" not in (folder / "report.html").read_text()  # escaped once


def test_labels_with_dollars_or_foreign_scripts_can_be_drawn(tmp_path: Path) -> None:
    clients = {"客户": {"$5 to $10": 3, "\\frac{": 2}, "": {"$": 1}}
    folder = write_run(
        tmp_path / "a",
        "μ $x_1$ 客",
        1,
        tiny_metrics(0.5, 0.6, 0.7),
        tiny_messages(),
        clients=clients,
    )
    drawn = [plot.name for plot in draw_plots(summarise(read_runs(folder)))]
    assert drawn == [name for name in PLOT_NAMES if name != "leakage"]


@pytest.mark.parametrize(("num_clients", "num_labels"), [(1, 1), (100, 2), (4, 77), (100, 77)])
def test_partitions_of_any_size_are_drawn(
    tmp_path: Path, num_clients: int, num_labels: int
) -> None:
    clients = {
        f"client-{i}": {f"label-{j}": i * j + 1 for j in range(num_labels)}
        for i in range(num_clients)
    }
    runs = read_runs(write_run(tmp_path / "a", "kd", 1, tiny_metrics(0.5), clients=clients))
    names, labels, counts = label_counts(runs[0])
    assert (len(names), len(labels)) == (num_clients, num_labels)
    assert counts[-1][labels.index(f"label-{num_labels - 1}")] == (
        (num_clients - 1) * (num_labels - 1) + 1
    )
    with quiet_style():
        assert plot_partition(runs) is not None


def test_labels_of_which_texts_have_several_are_not_called_examples(tmp_path: Path) -> None:
    clients = {"client-0": {"a": 3, "b": 2}}
    runs = read_runs(write_run(tmp_path / "a", "kd", 1, tiny_metrics(0.5), clients=clients))
    for size, what in ((5, "Training examples"), (3, "Labels of training examples")):
        runs[0].data["clients"]["client-0"]["num_examples"] = size
        with quiet_style():
            figure = plot_partition(runs)
        assert figure is not None
        assert figure.axes[0].get_xlabel() == what


def test_an_unfinished_run_without_anything_has_a_report(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    folder.mkdir()
    (folder / "status.json").write_text('{"state": "running", "arm": "kd"}')
    (folder / "plots").mkdir()
    (folder / "plots" / "bytes.png").write_text("of an earlier run")
    (folder / "plots" / "mine.png").write_text("the user's")
    page = page_of(folder)
    assert "There is nothing to draw yet." in page.text
    assert "config.yaml is missing" in page.text
    assert [path.name for path in (folder / "plots").iterdir()] == ["mine.png"]


def test_a_curve_is_the_mean_over_seeds_at_what_was_spent_by_then(tmp_path: Path) -> None:
    fedllm, zero = summarise(read_runs(tiny_compare(tmp_path / "c")))
    found = curve(fedllm, lambda line: number(line["accuracy"]), bytes_per_client)
    assert found.rounds == [0, 1, 2]
    assert found.x == [0, 160, 240]
    assert [stat.mean for stat in found.y] == pytest.approx([0.5, 0.6, 0.85])
    with quiet_style():
        figure = plot_bytes([fedllm, zero])
    assert figure is not None
    moving, level = figure.axes[0].lines
    assert np.asarray(moving.get_xdata()).tolist() == [160, 240]  # no zero on a logarithmic axis
    assert np.asarray(level.get_ydata()).tolist() == [0.5, 0.5]  # sends nothing: a level line


def test_an_arm_whose_ledger_is_lost_is_not_drawn_as_free(tmp_path: Path) -> None:
    folder = tiny_compare(tmp_path / "c")
    write_run(folder / "kd_s1", "kd", 1, tiny_metrics(0.5, 0.6), started="3")
    (folder / "kd_s1" / "wire.jsonl").unlink()
    rows = summarise(read_runs(folder))
    with quiet_style():
        figure = plot_bytes(rows)
    assert figure is not None
    assert [line.get_label() for line in figure.axes[0].lines] == ["fedllm", "zero-shot"]


def test_bytes_by_kind_are_per_client_and_round(tmp_path: Path) -> None:
    fedllm, zero = summarise(read_runs(tiny_compare(tmp_path / "c")))
    assert bytes_by_kind(fedllm) == pytest.approx(
        {
            ("up", "parameters"): 100,
            ("up", "control"): 10,
            ("down", "parameters"): 45,
            ("down", "control"): 5,
        }
    )
    assert bytes_by_kind(zero) == {}


def test_round_by_round_and_the_missing(tmp_path: Path) -> None:
    metrics = tiny_metrics(0.5, 0.6, 0.8)
    metrics[2] |= {"replied": 1, "missing": {"client-1": "timed out"}}
    folder = write_run(tmp_path / "a", "fedllm", 4, metrics, tiny_messages())
    rows = summarise(read_runs(folder))
    table = round_table(rows[0])
    assert table.header[:4] == ["Round", "Accuracy", "Loss", "Answered"]
    assert table.lines[1] == ["1", "60.0 %", "0.400", "2 of 2", "160 B", "1.50 kFLOPs", "10.0 s"]
    assert table.lines[2][3] == "1 of 2"
    (missing,) = missing_clients(rows)
    assert (missing.seed, missing.client, missing.reason) == (4, "client-1", "timed out")
    assert missing.rounds == [2]


def test_only_lines_in_which_configs_differ_are_marked() -> None:
    one = {"seed": 1, "model": {"name": "m", "ranks": [4, 8]}, "framework": {"name": "kd"}}
    two = {"seed": 2, "model": {"name": "m", "ranks": [4, 16]}, "note": "a: b\nc"}
    differing = differing_paths([one, two])
    assert differing == [("model", "ranks", "1"), ("framework", "name"), ("note",)]
    assert [line.strip() for line, differs in marked_yaml(one, differing) if differs] == [
        "- 8",
        "name: kd",
    ]
    assert "rank" not in str([line for line, marked in marked_yaml(two, differing) if marked])
    assert differing_paths([one, one]) == []


def test_a_report_needs_neither_torch_nor_transformers(tmp_path: Path) -> None:
    folder = tiny_compare(tmp_path / "c")
    program = (
        "import sys; from pathlib import Path\n"
        "from trillium.report.write import write_report\n"
        "from trillium.report.table import terminal_table\n"
        f"write_report(Path({str(folder)!r}))\n"
        "print(*sorted(name for name in sys.modules if '.' not in name))\n"
    )
    loaded = set(subprocess.check_output([sys.executable, "-c", program], text=True).split())
    assert "matplotlib" in loaded
    assert not loaded & {"torch", "transformers", "peft", "datasets", "flwr"}
