"""Servers of a deployment are killed and started again; what was complete stays."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="Flower is not installed (extra: deploy)")

from flower_help import Deployment, assert_whole, deployment

from deployed import assert_equal
from tiny import experiment_config
from trillium.config.experiment import ExperimentConfig
from trillium.deploy.flower import Value
from trillium.experiment.folder import RunFolder
from trillium.experiment.run import build

pytestmark = pytest.mark.drill  # a minute or two each; `test_sessions.py` kills servers, too

NAMES = ("client-0", "client-1")
COMMON = ("data.num_clients=2", "model.dropout=0.1", "model.dtype=float32")
RECIPES = {
    "fedllm": ("framework=fedllm", "framework.server_optimizer=adam", "rounds=8"),
    "kd": ("framework=kd", "framework.direction=both", "rounds=8"),
    "long": ("framework=kd", "fleet.min_replies=1", "rounds=200"),
}
SETTINGS: dict[str, Value] = {"wait_seconds": 200.0, "deadline_seconds": 60.0}


def config_of(hub: Path, name: str) -> ExperimentConfig:
    return experiment_config(hub, *COMMON, *RECIPES[name])


@pytest.fixture(scope="module")
def deployed(hub: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    target = tmp_path_factory.mktemp("restarts") / "federation"
    with deployment(target, {name: config_of(hub, name) for name in RECIPES}) as (found, _):
        yield found


@pytest.mark.parametrize("name", ["kd", "fedllm"])
def test_a_killed_server_goes_on_from_the_last_complete_round(
    deployed: Deployment, hub: Path, tmp_path: Path, name: str
) -> None:
    build(config_of(hub, name), RunFolder(tmp_path / "local", name)).run()
    run = deployed.submit(name, **SETTINGS)
    run.until_round(lambda row: row["round"] >= 2, "two rounds")
    deployed.server().kill()
    status = assert_whole(run.folder, "running")
    assert status["resumed"] == 0
    again = deployed.resume(run)
    assert again.finish().completed, "\n".join(again.lines)
    assert any("is complete" in line and "round 0" not in line for line in again.lines)
    assert assert_whole(run.folder, "finished")["resumed"] == 1
    assert_equal(run.folder, tmp_path / "local")


def test_a_killed_supernode_takes_part_again(deployed: Deployment) -> None:
    run = deployed.submit("long", **SETTINGS)
    run.until_there(*NAMES)
    deployed.running.kill("client-1")
    assert "the link was lost" in run.until_missing("client-1")
    deployed.running.start_node("client-1", patience=90.0)
    run.until_there(*NAMES)
    assert run.finish().completed, "\n".join(run.lines)
    assert_whole(run.folder, "finished")


def test_a_run_outlives_a_killed_superlink(hub: Path, tmp_path: Path) -> None:
    config = experiment_config(hub, *COMMON, "framework=kd", "rounds=25")
    build(config, RunFolder(tmp_path / "local", "kd")).run()
    with deployment(tmp_path / "federation", {"kd": config}, durable=True) as (deployed, _):
        run = deployed.submit("kd", **SETTINGS)
        run.until_there(*NAMES)
        deployed.running.kill("superlink")
        deployed.running.start_superlink()
        run.until_there(*NAMES)
        assert run.finish().completed, "\n".join(run.lines)
        assert_whole(run.folder, "finished")
        assert_equal(run.folder, tmp_path / "local")
