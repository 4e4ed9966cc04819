"""The components of docs/extending.md do what they say, and its framework gets the rest for free."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset

import tiny
from pages import aggregated, component, settings
from papers import hold
from resumed import assert_resumes
from trillium.experiment.folder import RunFolder
from trillium.experiment.run import Experiment, build
from trillium.federation.means import Contribution
from trillium.models.slots import matches
from trillium.plan.data import Assumptions, assumed_texts
from trillium.plan.predict import predict
from trillium.report.write import write_report
from trillium.wire.kinds import Tensors

pytestmark = pytest.mark.usefixtures("registered")


def final_state(federation: Experiment) -> dict[str, torch.Tensor]:
    federation.run()
    return {name: p.detach().clone() for name, p in federation.server.state.items()}


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


# What its framework gets for free


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """What its framework is run with, three clients of which two are visited in a round."""
    component("A framework", tmp_path)
    return [*settings("A framework"), "rounds=3"]


@pytest.mark.parametrize("wire", ["wire={}", "wire={up: [int8], down: [cast]}"])
def test_the_framework_is_planned(hub: Path, words: list[str], wire: str) -> None:
    """Its own code on tensors without values gives the ledger of the run; and a plan without data."""
    config = tiny.experiment_config(hub, *words, wire)
    hold(build(config))
    few = predict(config, assumed_texts(config, Assumptions(examples=8)))
    assert few.total.up.bytes > 0
    assert few.total.peak_bytes > 0


def test_the_framework_is_resumed(hub: Path, tmp_path: Path, words: list[str]) -> None:
    assert_resumes(tiny.experiment_config(hub, *words, "model.dropout=0.2"), tmp_path)


def test_the_framework_is_deployed(
    hub: Path, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    pytest.importorskip("flwr", reason="Flower is not installed (extra: deploy)")
    from deployed import assert_equal, run_in_threads

    config = tiny.experiment_config(hub, *words)
    build(config, RunFolder(tmp_path / "local", "local")).run()
    run_in_threads(config, keys, RunFolder(tmp_path / "sessions", "sessions"), monkeypatch)
    assert_equal(tmp_path / "sessions", tmp_path / "local")


def test_the_framework_is_reported(hub: Path, tmp_path: Path, words: list[str]) -> None:
    """Its quality, and what its clients sent and computed."""
    folder = tmp_path / "run"
    run = build(tiny.experiment_config(hub, *words), RunFolder(folder, "cyclic"))
    history = run.run()
    assert "cyclic" in write_report(folder).read_text(encoding="utf-8")
    [row] = csv.DictReader((folder / "table.csv").open(encoding="utf-8"))
    assert row["arm"] == "cyclic"
    up = run.fleet.ledger.bytes_total("up") / (3 * 2)  # rounds, clients in each
    assert float(row["bytes_up_per_client_round"]) == pytest.approx(up)
    assert float(row["flops_per_client"]) > 0
    assert float(row["accuracy"]) == pytest.approx(history[-1]["accuracy"])
    assert json.loads((folder / "status.json").read_text())["state"] == "finished"
