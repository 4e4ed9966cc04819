"""A deployment on loopback, with TLS and node authentication, equals the local engine."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr", reason="Flower is not installed: pip install 'trillium[deploy]'")

from tiny import experiment_config
from trillium.config import ExperimentConfig
from trillium.deploy.flower import Value
from trillium.deploy.launch import Federation
from trillium.deploy.prepare import RUNS, federation, prepare_here
from trillium.experiment import build
from trillium.run_folder import RunFolder, to_yaml

LIMIT = 240.0
COMMON = ("data.num_clients=2", "model.dropout=0.1", "model.dtype=float32", "rounds=2")
SESSION = {
    "fedllm": ("framework=fedllm", "wire.up=[int8]"),
    "kd": ("framework=kd", "framework.direction=both"),
    "split": ("framework=split", "framework.mode=coalesced"),
    "split_u": ("framework=split", "framework.shape=u", "framework.mode=splitfed_v2"),
}
MESSAGES = {"kd": SESSION["kd"]}


def config_of(hub: Path, words: tuple[str, ...]) -> ExperimentConfig:
    return experiment_config(hub, *COMMON, *words)


@pytest.fixture(scope="module")
def deployed(hub: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    target = tmp_path_factory.mktemp("deployed") / "federation"
    nodes = prepare_here(config_of(hub, SESSION["fedllm"]), target)
    for name, words in SESSION.items():
        recipe = target / "app" / "trillium_app" / f"{name}.yaml"
        recipe.write_text(to_yaml(config_of(hub, words).tree()))
    with federation(target, nodes) as running:
        yield running


def run(deployed: Federation, **settings: Value) -> tuple[Path, list[str]]:
    """Run the app and return the run folder and the server's log."""
    lines: list[str] = []
    before = {*(deployed.app.parent / RUNS).glob("*")}
    number = deployed.submit({name.replace("_", "-"): value for name, value in settings.items()})
    status = deployed.wait(number, LIMIT, lines.append)
    assert status.completed, "\n".join([status.state, status.details, *lines])
    [folder] = {*(deployed.app.parent / RUNS).glob("*")} - before
    return folder, lines


def ledger(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return what crossed, by client and in order; clients answer in any order among themselves."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in (folder / "wire.jsonl").read_text().splitlines():
        entry = json.loads(line)
        del entry["seconds"]
        found[entry.pop("client")].append(entry)
    return found


def assert_equal(folder: Path, local: Path) -> None:
    assert ledger(folder) == ledger(local)
    trained = "adapter/adapter_model.safetensors"
    assert (folder / trained).read_bytes() == (local / trained).read_bytes()
    status = json.loads((folder / "status.json").read_text())
    assert status["state"] == "finished"
    for one, two in zip(metrics(folder), metrics(local), strict=True):
        assert one == two


def metrics(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


@pytest.mark.parametrize("name", SESSION)
def test_a_deployment_equals_the_local_engine(
    deployed: Federation, hub: Path, tmp_path: Path, name: str
) -> None:
    build(config_of(hub, SESSION[name]), RunFolder(tmp_path / "local", name)).run()
    folder, lines = run(deployed, recipe=f"{name}.yaml")
    assert_equal(folder, tmp_path / "local")
    assert any("round 2/2: 2 of 2 replied" in line for line in lines)
    assert (folder / "report.html").is_file()


@pytest.mark.parametrize("name", MESSAGES)
def test_messages_without_a_session_equal_it_too(
    deployed: Federation, hub: Path, tmp_path: Path, name: str
) -> None:
    build(config_of(hub, MESSAGES[name]), RunFolder(tmp_path / "local", name)).run()
    folder, _ = run(deployed, recipe=f"{name}.yaml", transport="messages")
    assert_equal(folder, tmp_path / "local")


def test_a_split_by_messages_is_refused(deployed: Federation) -> None:
    number = deployed.submit({"recipe": "split.yaml", "transport": "messages"})
    status = deployed.wait(number, LIMIT)
    assert status.state == "finished:failed"
    assert "each Flower message takes seconds" in status.details
