"""The documentation says what the code does: pages are up to date, examples run, links lead on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel

from pages import DOCS, FENCED, PAGES, ROOT, aggregated, load
from trillium.federation.means import Contribution
from trillium.report.measures import MEASURES

pytestmark = pytest.mark.usefixtures("registered")

# Pages


def test_the_configuration_page_is_up_to_date() -> None:
    written = (DOCS / "configuration.md").read_text(encoding="utf-8")
    expected = load(DOCS / "generate_configuration.py").page()
    assert written == expected, "Run: python docs/generate_configuration.py"


def test_a_changed_default_would_be_noticed() -> None:
    script = load(DOCS / "generate_configuration.py")

    class Sample(BaseModel):
        """A sample.

        Attributes:
            first, second: numbers that
                go on.
        """

        first: int = 3
        second: float | None = None

    lines = list(script._table("here", Sample))
    assert lines[2:4] == [
        "| `here.first` | integer | `3` | Numbers that go on. |",
        "| `here.second` | number or `null` | `null` | Numbers that go on. |",
    ]


def test_every_measure_is_explained() -> None:
    text = (DOCS / "metrics.md").read_text(encoding="utf-8")
    missing = [m.name for m in MEASURES if f"`{m.name}`" not in text]
    assert not missing
    columns = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    assert not set(columns) - {m.name for m in MEASURES}, "explained, but not measured"


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        other = page if not name else (page.parent / name).resolve()
        assert other.exists(), target
        assert not anchor or anchor in anchors(other), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_pages_begin_with_what_the_reader_can_do(page: Path) -> None:
    text = re.sub(r"<!--.*?-->\n*", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    title, opening, *_ = text.split("\n\n")
    assert title.startswith("# ")
    assert page.stem == "index" or opening.startswith("After this page "), opening


# The examples


def tiny_settings(hub: Path) -> list[str]:
    return [
        f"model={{id: {hub / 'bert'}, random_weights: true, device: cpu}}",
        f"data={{source: {{name: files, train: {hub / 'classification.jsonl'}}}, public_size: 4}}",
        "training.local_steps=2",
        "rounds=1",
    ]


def test_the_custom_aggregator(hub: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example: Any = load(ROOT / "examples" / "custom_aggregator.py")
    example.main(tiny_settings(hub))
    losses = [float(x) for x in re.findall(r"held-out loss ([\d.]+)", capsys.readouterr().out)]
    assert len(losses) == 2
    assert losses[0] != losses[1]

    draw = torch.Generator().manual_seed(0)
    points = torch.randn(5, 6, generator=draw, dtype=torch.float64)
    points[4] += 1e3
    weights = [1.0, 2.0, 1.0, 1.5, 2.0]
    sent = [
        Contribution(str(k), w, {"a": p[:4].view(2, 2), "b": p[4:]})
        for k, (w, p) in enumerate(zip(weights, points, strict=True))
    ]
    found = aggregated(example.CentredClipping(num_iterations=500), sent)
    centre = torch.cat([found["a"].flatten(), found["b"]])
    radius = float((points - centre).norm(dim=1).median())

    def cost(at: torch.Tensor) -> float:
        """The Huber loss of the distances, whose gradients are clipped at the radius."""
        distances = (points - at).norm(dim=1)
        inside = distances.square() / 2
        losses = torch.where(distances <= radius, inside, radius * (distances - radius / 2))
        return float(torch.tensor(weights, dtype=torch.float64) @ losses)

    for _ in range(50):  # nothing near it is better
        assert cost(centre) <= cost(centre + 0.05 * torch.randn(6, generator=draw).double()) + 1e-9
    assert float(centre.norm()) < 10
    mean = (torch.tensor(weights, dtype=torch.float64) @ points) / sum(weights)
    assert float(mean.norm()) > 100
