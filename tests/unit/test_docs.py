"""The documentation says what the code does: pages are up to date, examples run, links lead on."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from datasets import Dataset
from pydantic import BaseModel

import tiny
from trillium.cli.words import parse
from trillium.component import Component, known
from trillium.config.experiment import experiment
from trillium.data.partitions import Partition
from trillium.experiment.run import Experiment
from trillium.federation.means import Contribution
from trillium.frameworks import Framework
from trillium.frameworks.fedllm.aggregators import Aggregator
from trillium.frameworks.fedllm.masks import Mask
from trillium.models.slots import matches
from trillium.report.measures import MEASURES
from trillium.wire.codecs import Codec
from trillium.wire.kinds import Tensors

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def load(path: Path) -> ModuleType:
    """Import a file that is in no package."""
    spec = importlib.util.spec_from_file_location(f"of_docs_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # pydantic looks annotations up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    """Forget the components that a test defines, so that no other test meets them."""
    kinds: list[type[Component]] = [Aggregator, Codec, Mask, Partition, Framework]
    before = {kind: dict(known(kind)) for kind in kinds}
    yield
    for kind, members in before.items():
        kind.members.clear()
        kind.members.update(members)


def blocks(page: str, heading: str, language: str) -> list[str]:
    """Return the fenced blocks of a page in `docs/` under a heading."""
    text = (DOCS / page).read_text(encoding="utf-8")
    [section] = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return [body for found, body in FENCED.findall(section) if found == language]


def component(heading: str, tmp_path: Path, page: str = "extending.md") -> ModuleType:
    """Import the component that a section of a page defines, as the file it says it is."""
    [source] = blocks(page, heading, "python")
    name = re.match(r"# src/trillium/\S+/(\w+)\.py\n", source)
    assert name is not None
    path = tmp_path / f"{name[1]}.py"
    path.write_text(source, encoding="utf-8")
    return load(path)


def settings(heading: str) -> list[str]:
    """Return the `key=value` words of the command in a section of extending.md."""
    [command] = blocks("extending.md", heading, "sh")
    words = shlex.split(command)
    assert words[:2] == ["trillium", "run"]
    return words[2:]


def aggregated(aggregator: Aggregator, sent: list[Contribution]) -> Tensors:
    """Return what an aggregator makes of contributions, by the path that FedLLM takes."""
    like = {name: torch.zeros_like(tensor) for name, tensor in sent[0].tensors.items()}
    reduction = aggregator.begin(like, [])
    for contribution in sent:
        reduction.add(contribution)
    found = reduction.result()
    assert not found.folds
    return found.tensors


def final_state(federation: Experiment) -> dict[str, torch.Tensor]:
    federation.run()
    return {name: p.detach().clone() for name, p in federation.server.state.items()}


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
def test_settings_in_commands_exist(page: Path) -> None:
    """Every `trillium run` with settings, and no recipe, gives a configuration that is accepted."""
    for language, body in FENCED.findall(page.read_text(encoding="utf-8")):
        for line in body.splitlines() if language == "sh" else []:
            words = shlex.split(line, comments=True)
            if words[:2] != ["trillium", "run"] or page.stem == "extending":
                continue  # what extending.md sets exists in the tests below
            options: dict[str, str | None] = {"--model": None, "--data": None}
            for option in options:
                if option in words:
                    at = words.index(option)
                    options[option] = words[at + 1]
                    del words[at : at + 2]
            recipe, tree = parse(words[2:], options["--model"], options["--data"])
            assert recipe is None
            experiment(tree)


# The components of extending.md


def test_the_aggregator(hub: Path, tmp_path: Path) -> None:
    module = component("An aggregator", tmp_path)
    distances = []
    for words in ([], settings("An aggregator")):
        federation = tiny.federation(hub, *words)
        start = {name: p.detach().clone() for name, p in federation.server.state.items()}
        tiny.run_rounds(federation, 1)
        distances.append(tiny.distance(start, federation.server.state))
    assert 0 < distances[1] < 0.02 * distances[0]

    sent = [
        Contribution("a", 1.0, {"x": torch.tensor([3.0]), "y": torch.tensor([4.0])}),
        Contribution("b", 3.0, {"x": torch.tensor([0.0]), "y": torch.tensor([1.0])}),
        Contribution("c", 2.0, {"x": torch.tensor([2.5]), "y": torch.tensor([0.0])}),
    ]
    found = aggregated(module.ClippedMean(), sent)  # norms 5, 1 and 2.5: only a's is halved
    assert float(found["x"]) == pytest.approx((1.5 + 3 * 0.0 + 2 * 2.5) / 6)
    assert float(found["y"]) == pytest.approx((2.0 + 3 * 1.0 + 2 * 0.0) / 6)
    loose = aggregated(module.ClippedMean(factor=2.0), sent)
    assert float(loose["x"]) == pytest.approx((3.0 + 5.0) / 6)
    parts = [*sent[:2], Contribution("c", 2.0, {"x": torch.tensor([2.5])})]
    with pytest.raises(ValueError, match="different tensors"):
        aggregated(module.ClippedMean(), parts)


def test_the_aggregator_of_contributing(tmp_path: Path) -> None:
    module = component("A new component is one new file", tmp_path, "../CONTRIBUTING.md")
    values = [torch.tensor([[v, -v]]) for v in (1.0, 5.0, 3.0, 100.0, 2.0)]
    given = [Contribution(f"c{i}", 1.0 + i, {"w": value}) for i, value in enumerate(values)]
    found = aggregated(module.MeanAroundMedian(), given)  # the median is 3; 1 is as near as 5 is
    assert torch.equal(found["w"], torch.tensor([[2.0, -2.0]]))
    last = aggregated(module.MeanAroundMedian(), given[1:])
    assert torch.equal(last["w"], torch.tensor([[10.0 / 3, -10.0 / 3]]))


def test_the_codec(hub: Path, tmp_path: Path) -> None:
    module = component("A codec", tmp_path)
    codec = module.ScaledSign()
    for shape in [(), (0,), (3,), (8,), (2, 0, 3), (5, 7)]:
        tensor = torch.randn(shape)
        parts = codec.encode(tensor, 0)
        expected = torch.where(tensor >= 0, 1.0, -1.0) * (
            tensor.abs().mean() if shape else tensor.abs()
        )
        found = codec.decode(parts, 0)
        assert found.shape == tensor.shape
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected)
    assert codec.encode(torch.randn(5, 7), 0)[""].nbytes == 5
    parts = codec.encode(torch.ones(3, 3), 0)
    wrong: list[dict[str, torch.Tensor]] = [
        {"shape": torch.tensor([-3, -3])},
        {"shape": torch.tensor([2**40])},
        {"": parts[""][:1]},
        {"scale": torch.ones(2)},
        {"more": torch.ones(2)},
    ]
    for change in wrong:
        with pytest.raises(ValueError, match=r"packed signs|not accepted|expected"):
            codec.decode({**parts, **change}, 0)

    words = ["framework.upload=update", "rounds=1"]
    plain = tiny.federation(hub, *words)
    coded = tiny.federation(hub, *words, *settings("A codec"))
    start = {name: p.detach().clone() for name, p in coded.server.state.items()}
    plain.run()
    ended = final_state(coded)
    sent = {
        which: sum(e.bytes for e in f.fleet.ledger.entries if e.direction == "up")
        for which, f in {"plain": plain, "coded": coded}.items()
    }
    assert sent["coded"] < sent["plain"]
    assert all(not torch.equal(ended[name], start[name]) for name in start)


def test_the_mask(hub: Path, tmp_path: Path) -> None:
    component("A mask", tmp_path)
    federation = tiny.federation(hub, *settings("A mask"))
    states = [{n: p.detach().clone() for n, p in federation.server.state.items()}]
    federation.run(lambda line: states.append(_copy(federation)))
    [_, start, first, second] = states
    head = {name for name in start if matches(name, ["head"])}
    assert 0 < len(head) < len(start)
    assert {name for name in start if not torch.equal(first[name], start[name])} == head
    assert all(not torch.equal(second[name], first[name]) for name in start if "lora_B" in name)

    language = tiny.federation(hub, *settings("A mask"), "rounds=1", task="causal_lm")
    before = _copy(language)
    assert tiny.distance(before, final_state(language)) > 0


def _copy(federation: Experiment) -> Tensors:
    return {name: p.detach().clone() for name, p in federation.server.state.items()}


def test_the_partition(hub: Path, tmp_path: Path) -> None:
    module = component("A partition", tmp_path)
    texts = ["x" * length for length in (5, 1, 4, 2, 3, 6, 7)]
    rows = Dataset.from_dict({"text": texts})
    parts = module.LengthSkewed().assign(rows, 3, 0)
    assert [sorted(len(texts[row]) for row in part) for part in parts] == [
        [1, 2, 3],
        [4, 5],
        [6, 7],
    ]
    equal = Dataset.from_dict({"text": ["same"] * 30})
    assert module.LengthSkewed().assign(equal, 3, 0) == module.LengthSkewed().assign(equal, 3, 0)
    assert module.LengthSkewed().assign(equal, 3, 0) != module.LengthSkewed().assign(equal, 3, 1)

    federation = tiny.federation(hub, *settings("A partition"))
    lengths = [[len(text) for text in part["text"]] for part in federation.data.clients.values()]
    assert max(lengths[0]) <= min(lengths[1])
    assert max(lengths[1]) <= min(lengths[2])


def test_the_framework(hub: Path, tmp_path: Path) -> None:
    component("A framework", tmp_path)
    federation = tiny.federation(hub, *settings("A framework"))
    [_, *lines] = federation.run()
    assert [line["replied"] for line in lines] == [2, 2]
    verbs = {entry.verb for entry in federation.fleet.ledger.entries}
    assert verbs == {"train_next"}

    # One client is visited as often as it is averaged; two are not.
    for num_clients, is_equal in ((1, True), (2, False)):
        alike = [f"data.num_clients={num_clients}", "training.schedule=linear"]
        cyclic = final_state(tiny.federation(hub, "framework=cyclic", *alike))
        averaged = final_state(tiny.federation(hub, "framework=fedllm", *alike))
        close = all(torch.allclose(cyclic[name], averaged[name], atol=1e-9) for name in cyclic)
        assert close is is_equal


# The examples


def tiny_settings(hub: Path) -> list[str]:
    return [
        f"model={{id: {hub / 'bert'}, random_weights: true, device: cpu}}",
        f"data={{source: {{name: files, train: {hub / 'classification.jsonl'}}}, public_size: 4}}",
        "training.local_steps=2",
        "rounds=1",
    ]


def test_the_python_api(hub: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example: Any = load(ROOT / "examples" / "python_api.py")
    federation = example.main(tiny_settings(hub))
    printed = capsys.readouterr().out
    assert "round 1: loss " in printed
    up = federation.fleet.ledger.bytes_total("up")
    shown = [int(n.replace(",", "")) for n in re.findall(r"([\d,]+) B up", printed)]
    assert len(shown) == 3
    assert sum(shown) == up
    assert "most likely: class " in printed


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
