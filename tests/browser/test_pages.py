"""Pages in a real browser: no script fails, nothing overflows, no picture lacks, nothing is fetched."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pages import DOCS, load
from report_fixture import tiny_compare, tiny_messages, tiny_metrics, wire, write_run
from trillium.cli.app import app
from trillium.report.write import write_report

screens = load(DOCS / "screens.py")
WIDTHS = (390, 800, 1280)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(screens.chromium() is None, reason="Chromium or Playwright is not there"),
]
OVERFLOW = "document.documentElement.scrollWidth - innerWidth"
BROKEN = "[...document.images].filter((i) => !i.complete || !i.naturalWidth).length"
DRAWN = """[...document.querySelectorAll(".plot canvas")].map((canvas) =>
  canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.some((x) => x > 0))"""
LONG = "an_arm_with_a_label_that_is_as_long_as_they_come_and_has_no_place_to_break"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with screens.browser() as opened:
        yield opened


class Watched:
    """A page that is watched while it is used."""

    def __init__(self, browser: Any) -> None:
        self.page = browser.new_page()
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", self._console)
        self.page.on("request", self._request)

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(message.text)

    def _request(self, request: Any) -> None:
        if not request.url.startswith(("file:", "data:")):
            self.errors.append(f"asks for {request.url}")

    def open(self, path: Path, width: int = 1280, scheme: str = "light") -> None:
        self.page.emulate_media(color_scheme=scheme)
        self.page.set_viewport_size({"width": width, "height": 900})
        self.page.goto(path.as_uri())

    def faults(self) -> list[str]:
        found = [*self.errors]
        if over := self.page.evaluate(OVERFLOW):
            found.append(f"overflows by {over}")
        if broken := self.page.evaluate(BROKEN):
            found.append(f"{broken} pictures are missing")
        return found


@pytest.fixture
def watched(browser: Any) -> Iterator[Watched]:
    found = Watched(browser)
    yield found
    found.page.close()


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Reports of a comparison with all that a page may have, of one run, and of an empty one."""
    root = tmp_path_factory.mktemp("reports")
    folder = tiny_compare(root / "comparison")
    metrics = tiny_metrics(0.5, 0.6, 0.7)
    for line in metrics[1:]:
        line["train_loss"] = 2.0 / line["round"]
    metrics[2]["missing"] = {"client-1": "timed out " * 20}
    many = {f"client-{i}": {f"a_label_{j}": i * j for j in range(40)} for i in range(12)}
    run = write_run(
        folder / "long_s1", LONG, 1, metrics, tiny_messages(), started="3", clients=many
    )
    confusion = [[i, (i * 7) % 40, 3] for i in range(40)]
    texts = [{"prompt": "Why? " * 60, "reference": "x" * 300, "answer": "Because."}]
    (run / "answers.json").write_text(json.dumps({"confusion": confusion, "texts": texts}))
    (folder / "about.yaml").write_text("about: What it is about.\nreach: [0.6]\n")
    large = [wire(1, "c", "up", {"activations": 10**9}, flops=10**12, peak=10**9)]
    alone = write_run(root / "alone", "split", 1, tiny_metrics(0.1, 0.2), large)
    empty = root / "empty"
    empty.mkdir()
    (empty / "status.json").write_text('{"state": "running", "arm": "kd"}')
    return {path.name: write_report(path) for path in (folder, alone, empty)}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_a_report_is_whole_at_every_width(
    watched: Watched, reports: dict[str, Path], width: int, scheme: str
) -> None:
    for name, path in reports.items():
        watched.open(path, width, scheme)
        assert watched.faults() == [], name
        drawn = watched.page.evaluate(DRAWN)
        assert all(drawn)
        assert bool(drawn) == (name != "empty")
        watched.page.evaluate("document.querySelectorAll('details').forEach((d) => d.open = true)")
        assert watched.faults() == [], f"{name}, opened"
        for axis in watched.page.locator(".switch label").all():
            axis.click()
            assert all(watched.page.evaluate(DRAWN)), axis.inner_text()
        assert watched.faults() == [], f"{name}, switched"
    ground = watched.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") == (scheme == "light")


def test_tables_are_sorted_and_curves_are_read(watched: Watched, reports: dict[str, Path]) -> None:
    watched.open(reports["comparison"])
    page = watched.page
    first = page.locator("#results tbody").first.locator("tr th")
    assert first.all_inner_texts()[0].startswith("fedllm")
    head = page.locator("#results thead button", has_text="Accuracy")
    head.click()
    assert first.all_inner_texts()[0].startswith(LONG), "0.7 is less than 0.85"
    head.click()
    assert first.all_inner_texts()[0].startswith("fedllm")
    chart = page.locator(".chart").first
    over = chart.locator(".u-over")
    over.scroll_into_view_if_needed()
    box = over.bounding_box()
    over.hover(position={"x": box["width"] * 0.9, "y": box["height"] * 0.2})
    assert "round 2" in chart.locator(".tip").inner_text()
    shown = page.evaluate("document.querySelector('.plot canvas').toDataURL()")
    page.locator(".legend [data-arm='0']").click()
    assert page.evaluate("document.querySelector('.plot canvas').toDataURL()") != shown
    assert watched.faults() == []


@pytest.mark.parametrize("width", WIDTHS)
def test_a_plan_is_whole_at_every_width(watched: Watched, tmp_path: Path, width: int) -> None:
    words = ["framework=fedllm", "adapter.r=2,4,8,16,32,64", "--plots", str(tmp_path)]
    words += ["plan.client.device.flops=1e12", "plan.server.device.flops=1e13"]
    words += ["plan.client.link={up: 10Mbit, down: 10Mbit}"]
    shown = CliRunner().invoke(app, ["plan", "distilgpt2", *words])
    assert shown.exit_code == 0, shown.output
    for scheme in ("light", "dark"):
        watched.open(tmp_path / "plan.html", width, scheme)
        assert watched.faults() == []
        assert watched.page.locator("img").count() == 2


def test_a_report_is_printed_on_white(watched: Watched, reports: dict[str, Path]) -> None:
    watched.open(reports["comparison"], 800, "dark")
    watched.page.emulate_media(media="print", color_scheme="dark")
    assert watched.faults() == []
    body = "getComputedStyle(document.body)"
    assert watched.page.evaluate(f"{body}.backgroundColor") == "rgb(255, 255, 255)"
    assert not watched.page.locator(".copy").first.is_visible()


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("<script>nothing.there()</script>", "nothing is not defined"),
        ('<div style="width: 2000px">wide</div>', "overflows"),
        ('<img src="missing.png">', "1 pictures are missing"),
        ('<img src="http://127.0.0.1:9/x.png">', "asks for http"),
    ],
)
def test_a_page_with_a_fault_is_found_out(
    watched: Watched, tmp_path: Path, content: str, fault: str
) -> None:
    path = tmp_path / "page.html"
    path.write_text(f"<!doctype html><body>{content}</body>")
    watched.open(path)
    assert any(fault in found for found in watched.faults())
