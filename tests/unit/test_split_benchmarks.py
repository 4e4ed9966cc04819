"""The benchmarks of Split's speed: both sides do the same work, and throughput notices if not."""

from __future__ import annotations

import importlib
import threading
from multiprocessing import Pipe
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer

from trillium.experiment.run import build

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
EXAMPLES = 64  # two pooled batches


@pytest.fixture
def throughput(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("split_throughput")


@pytest.fixture(scope="module")
def bert(hub: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model with weights in its folder, which both sides load."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(hub / "bert")
    AutoModel.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(hub / "bert").save_pretrained(folder)
    return str(folder)


def test_every_case_is_the_work_of_the_unsplit_loop(throughput: ModuleType, bert: str) -> None:
    for case in throughput.CASES:
        found = throughput.measure(case, bert, EXAMPLES, 2)
        assert len(found["wall"]["speeds"]["split"]) == 2, "the first epoch is left out"
        assert found["wall"]["ratio_min"] <= found["wall"]["ratio"] <= found["wall"]["ratio_max"]
        assert found["cpu"]["ratio"] > 0
        assert (found["largest_weight_difference"] is not None) == case.same
        throughput.show("x", [(case.name, found["wall"])])


@pytest.mark.parametrize("name", ["one_client", "four_clients", "cache_once"])
def test_other_batches_are_other_work(
    throughput: ModuleType, bert: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    right = throughput.pooled_batches

    def without_one(*words: Any) -> Any:
        return ([*chunk[1:], chunk[1]] for chunk in right(*words))

    monkeypatch.setattr(throughput, "pooled_batches", without_one)
    [case] = [case for case in throughput.CASES if case.name == name]
    with pytest.raises(SystemExit, match="not the same work"):
        throughput.measure(case, bert, EXAMPLES, 1)


@pytest.mark.parametrize("staleness", [0, 1])
def test_clients_behind_a_pipe_learn_as_those_of_this_process(
    monkeypatch: pytest.MonkeyPatch, bert: str, staleness: int
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    ahead = importlib.import_module("split_ahead")
    config = ahead.configuration(bert, 1, EXAMPLES, 2, staleness)
    ours, theirs = Pipe()
    clients = threading.Thread(target=ahead.serve, args=(theirs, config.tree(), 1e9))
    clients.start()
    assert ours.recv() == "ready"
    behind = build(config)
    engine = ahead.Apart(behind.fleet.engine.clients, ours)
    behind.fleet.engine, behind.clients = engine, []
    here = build(config)
    for side in (behind, here):
        config.framework.start(side.server, side.fleet)
        for number in (1, 2):
            ahead.trillium_round(side, number)
    ours.send(None)
    clients.join(timeout=60)
    assert not clients.is_alive()
    for name, value in here.server.state.items():
        assert torch.equal(value, behind.server.state[name])
        assert not torch.equal(value, here.server.initial[name])
