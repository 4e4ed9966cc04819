"""The deployed app on Flower's simulation runtime (Ray) equals the local engine."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="Ray is not installed (extra: simulation)")

from deployed import assert_equal
from tiny import experiment_config
from trillium.deploy.flower import command, environment
from trillium.deploy.prepare import RUNS, deploy
from trillium.deploy.processes import Process, free_port
from trillium.experiment.folder import RunFolder
from trillium.experiment.run import build

pytestmark = pytest.mark.slow  # processes of Flower's, which take seconds to start

WORDS = (
    "framework=kd",
    "framework.direction=both",
    "data.num_clients=3",
    "fleet.clients_per_round=2",
    "model.dropout=0.1",
    "model.dtype=float32",
)
NODES = "num-supernodes=3 client-resources-num-cpus=1 init-args-num-cpus=2"
LIMIT = 600.0


def test_simulated_nodes_equal_the_local_engine(hub: Path, tmp_path: Path) -> None:
    """More clients than processes: what one client leaves in a process must not reach another."""
    config = experiment_config(hub, *WORDS)
    build(config, RunFolder(tmp_path / "local", "kd")).run()
    target, port = tmp_path / "federation", free_port("127.0.0.1")
    deploy(config, target, ["unused"], {"min-nodes": 3, "transport": "messages"})
    home = tmp_path / "home"
    home.mkdir()
    (home / "config.toml").write_text(
        f'[superlink.sim]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    variables = environment(home, {"OMP_NUM_THREADS": "1"})
    words = ["--simulation", "--insecure", "--host=127.0.0.1", f"--port={port}"]
    superlink = Process(
        [command("flower-superlink"), *words, "--disable-runtime-dependency-installation"],
        log=tmp_path / "superlink.log",
        environment=variables,
        folder=target,
    )

    def flwr(*words: str) -> str:
        done = subprocess.run(
            [command("flwr"), *words], env=variables, cwd=target, capture_output=True, text=True
        )
        return done.stdout

    try:
        deadline = time.monotonic() + LIMIT
        answer: dict[str, object] = {}
        while not answer.get("success"):
            assert superlink.alive(), superlink.tail()
            assert time.monotonic() < deadline
            told = flwr("run", "app", "sim", "--federation-config", NODES, "--format", "json")
            answer = json.loads(told or "{}")
        while True:
            [run] = json.loads(flwr("list", "sim", "--format", "json"))["runs"]
            if run["status"].startswith("finished"):
                break
            assert time.monotonic() < deadline, superlink.tail()
            time.sleep(1.0)
        assert run["status"] == "finished:completed", flwr(
            "log", str(run["run-id"]), "sim", "--show"
        )
    finally:
        superlink.kill()
    [folder] = (target / RUNS).glob("*/")
    assert_equal(folder, tmp_path / "local")
