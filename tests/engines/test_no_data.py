"""A federation whose server has no rows at all: from `trillium deploy` to the report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="Flower is not installed (extra: deploy)")

from flower_help import LIMIT

from deployed import assert_equal, lines_of
from tiny import experiment_config
from trillium.config.experiment import experiment, merge
from trillium.data.deployed import write_rows
from trillium.data.load import load_data
from trillium.deploy.flower import Value
from trillium.deploy.keys import make_keys
from trillium.deploy.launch import HOST
from trillium.deploy.prepare import RUNS, deploy, federation
from trillium.deploy.processes import free_port
from trillium.experiment.folder import RunFolder
from trillium.experiment.run import build
from trillium.report.read import read_run

pytestmark = pytest.mark.slow  # processes of Flower's, which take seconds to start

WORDS = (
    *("model.dtype=float32", "rounds=3", "training.max_length=32", "data.labels=union"),
    *("evaluation={where: clients, keep: best, held_back: 0.3}", "data.test_fraction=0.0"),
)


def test_three_nodes_and_a_server_without_a_row(hub: Path, tmp_path: Path) -> None:
    """The nodes name the classes and measure; the best round is theirs, and as in the simulation."""
    config = experiment_config(hub, *WORDS)
    build(config, RunFolder(tmp_path / "local", "fedllm")).run()
    rows = load_data(config.data, "classification", config.seed, config.public_size)
    target, names = tmp_path / "federation", sorted(rows.clients)
    without = experiment(merge(config.tree(), {"data": {"source": {"name": "nodes"}}}))
    address = f"{HOST}:{free_port(HOST)}"
    deploy(without, target, names, {"session-address": address, "session-bind": address})
    held = {path.name: path.read_text() for path in (target / "server" / "data").iterdir()}
    assert held == {"labels.json": "[]"}
    make_keys(target / "keys", [HOST, "localhost"], names)
    nodes: dict[str, dict[str, Value]] = {}
    for name, own in rows.clients.items():
        folder, keys = target / "nodes" / name, target / "keys"
        write_rows(folder / "train.jsonl", own, rows.labels, config.data.source)
        nodes[name] = {"name": name, "data": str(folder / "train.jsonl")}
        nodes[name] |= {"certificate": str(keys / "nodes" / name / "client.crt")}
        nodes[name] |= {"key": str(keys / "nodes" / name / "client.key")}
        nodes[name] |= {"authority": str(keys / "ca.crt"), "state": str(folder / "state")}
    lines: list[str] = []
    with federation(target, nodes) as running:
        status = running.wait(running.submit(), LIMIT, lines.append)
    assert status.completed, "\n".join([status.state, status.details, *lines])
    [folder] = (target / RUNS).glob("*/")
    assert_equal(folder, tmp_path / "local")
    told = json.loads((folder / "labels.json").read_text())
    assert told["labels"] == ["class 0", "class 1", "class 2"]
    assert set(told["nodes"]) == set(names)
    best = max(lines_of(folder / "metrics.jsonl")[1:], key=lambda line: line["accuracy"])
    assert read_run(folder).kept_round == best["round"] == read_run(tmp_path / "local").kept_round
    assert set(best["clients"]) == set(names)
    assert "evaluation.where=clients" in (folder / "report.html").read_text()
    left = [line["verb"] for line in lines_of(target / "nodes" / names[0] / "state" / "log.jsonl")]
    assert left.count("labels") == 1
    assert "measure" in left
