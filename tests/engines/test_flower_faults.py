"""Nodes of a deployment fail, come late and come back; the run goes on. Real processes, on loopback."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="Flower is not installed (extra: deploy)")

from flower_help import (
    Deployment,
    assert_whole,
    deployment,
    stopped,
)

from deployed import lines_of
from tiny import experiment_config
from trillium.deploy.flower import Value
from trillium.errors import SAID

pytestmark = pytest.mark.drill  # processes of Flower's, which take seconds to start

GOOD, SHAKY, LATE, UNKNOWN, EMPTY = (f"client-{number}" for number in range(5))
RECIPE = (
    "data.num_clients=5",
    "model.dtype=float32",
    "fleet.min_replies=1",
    "framework=kd",
    "framework.direction=both",
    "rounds=60",
)
DEADLINE_SECONDS = 6.0
WAIT_SECONDS = 90.0  # until a run without nodes ends
SLACK_SECONDS = 60.0  # for processes of Flower to start and end
CUT_SECONDS = 3.0
SETTINGS: dict[str, Value] = {
    "min_nodes": 2,
    "wait_seconds": 200.0,
    "deadline_seconds": DEADLINE_SECONDS,
}


@pytest.fixture(scope="module")
def deployed(
    hub: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Deployment, dict[str, dict[str, Value]]]]:
    target = tmp_path_factory.mktemp("faults") / "federation"
    recipe = experiment_config(hub, *RECIPE)
    with deployment(target, {"long": recipe}, [GOOD, SHAKY]) as found:
        yield found


def test_nodes_go_and_come(deployed: tuple[Deployment, dict[str, dict[str, Value]]]) -> None:
    """A link that is cut, a straggler, a node that comes late, two that cannot take part."""
    federation, nodes = deployed
    running = federation.running
    rows = Path(str(nodes[UNKNOWN]["data"]))
    rows.write_text(rows.read_text().replace("class 1", "class unheard-of"))
    Path(str(nodes[EMPTY]["data"])).unlink()
    run = federation.submit("long", **SETTINGS)
    run.until_there(GOOD, SHAKY)
    for name in (LATE, UNKNOWN, EMPTY):
        running.nodes[name] = nodes[name]
        running.register(name)
        running.start_node(name)

    shaky = federation.client(SHAKY)
    assert shaky is not None
    federation.link.cut_off(shaky)
    assert "the link was lost" in run.until_missing(SHAKY)
    time.sleep(CUT_SECONDS)
    federation.link.let_back()
    run.until_there(GOOD, SHAKY)

    with stopped(shaky):
        assert run.until_missing(SHAKY).endswith(f"within {DEADLINE_SECONDS:g} s")
    run.until_there(GOOD, SHAKY)
    assert federation.client(SHAKY) == shaky  # the same process all the time

    run.until_there(GOOD, SHAKY, LATE)
    for name, why in (
        (UNKNOWN, SAID["unknown_class"]),
        (EMPTY, SAID["no_file"]),
    ):
        run.until_told(f"{name}: its session has ended: the node cannot take part: {why}")
    assert run.finish().completed, "\n".join(run.lines)
    assert_whole(run.folder, "finished")
    assert not any("nodes/client" in line for line in run.lines)
    entries = lines_of(run.folder / "wire.jsonl")
    assert {entry["client"] for entry in entries} == {GOOD, SHAKY, LATE}
    # The late one had the public set in its first round; the others kept it.
    once = {e["client"]: e["round"] for e in entries if e["purpose"] == "once"}
    assert once[GOOD] == once[SHAKY] == 0 < once[LATE]
    for name in (GOOD, SHAKY, LATE):
        assert not [*Path(str(nodes[name]["state"])).glob("runs/*")]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_client_takes_part_again(
    deployed: tuple[Deployment, dict[str, dict[str, Value]]], how: signal.Signals
) -> None:
    """Interrupted is what a ClientApp is whose SuperExec has died."""
    federation, _ = deployed
    run = federation.submit("long", **SETTINGS)
    run.until_there(GOOD, SHAKY)
    federation.link.delay_seconds = 0.5
    client = federation.client(SHAKY)
    assert client is not None
    client.send_signal(how)
    assert "the link was lost" in run.until_missing(SHAKY)
    run.until_there(GOOD)
    # Flower declares the ClientApp dead after a minute; then its node is invited anew.
    run.until_there(GOOD, SHAKY)
    run.until_told(f"{SHAKY}: its session has ended: Flower error 8")
    assert federation.client(SHAKY) != client
    assert run.finish().completed, "\n".join(run.lines)
    assert_whole(run.folder, "finished")


def test_a_run_that_loses_all_nodes_fails_and_can_be_resumed(
    deployed: tuple[Deployment, dict[str, dict[str, Value]]],
) -> None:
    federation, nodes = deployed
    running = federation.running
    run = federation.submit("long", **{**SETTINGS, "wait_seconds": WAIT_SECONDS})
    run.until_there(GOOD, SHAKY)
    lost = [name for name in nodes if name in running.processes]
    since = time.monotonic()
    for name in lost:
        running.kill(name)
    status = run.finish()
    assert time.monotonic() - since < WAIT_SECONDS + DEADLINE_SECONDS + SLACK_SECONDS
    assert status.state == "finished:failed"
    assert "min_replies is 1" in status.details
    error = assert_whole(run.folder, "failed")["error"]
    assert f"{GOOD}: " in error
    assert "the link was lost" in error
    num_rounds = len(run.rows())
    for name in (GOOD, SHAKY):
        running.start_node(name, patience=90.0)
    again = federation.resume(run)
    assert again.finish().completed, "\n".join(again.lines)
    assert assert_whole(run.folder, "finished")["resumed"] == 1
    assert [row["round"] for row in run.rows()] == list(range(61))
    assert num_rounds < 61
