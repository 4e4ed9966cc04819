"""A federation of real processes on this machine: it runs, survives what it should, and ends whole."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr", reason="Flower is not installed (extra: deploy)")

import echo_app

from trillium.deploy import launch
from trillium.deploy.flower import Value
from trillium.deploy.keys import make_keys
from trillium.deploy.launch import Federation
from trillium.deploy.processes import Process
from trillium.errors import UserError

NAMES = ("alpha", "beta")
TEXT = 'it\'s a "text" with = and spaces'
LIMIT = 600.0  # seconds; nothing is measured with it


def build(folder: Path, *, port: int = 0) -> Federation:
    app = folder / "app"
    if not app.exists():
        echo_app.write(app)
    make_keys(folder / "keys", ["127.0.0.1"], NAMES)
    nodes: dict[str, dict[str, Value]] = {
        name: {"name": f'{name}\'s "node"', "number": 1} for name in NAMES
    }
    return Federation(app, folder / "work", keys=folder / "keys", nodes=nodes, port=port)


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    with build(tmp_path_factory.mktemp("federation")) as running:
        yield running


def living(folder: Path) -> list[str]:
    """The command lines of living processes that mention a folder."""
    lines = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if int(entry.name) != os.getpid() and any(str(folder) in word for word in words):
            lines.append(" ".join(words))
    return lines


@pytest.mark.slow
def test_a_run_goes_to_its_end(federation: Federation) -> None:
    lines: list[str] = []
    run = federation.submit({"text": TEXT, "rounds": 2})
    status = federation.wait(run, LIMIT, lines.append)
    assert (status.state, status.details) == ("finished:completed", "")
    assert f"text {TEXT!r}" in lines
    assert "nodes alpha beta" in lines  # the names of the registration
    replies = sorted(line for line in lines if line.startswith("reply"))
    assert replies == [f'reply {name}\'s "node" {n}' for name in NAMES for n in (0, 1)]
    for name in ("superlink", *NAMES, f"run_{run}"):
        assert (federation.work / "logs" / f"{name}.log").stat().st_size > 0
    assert len(federation.flwr.online()) == 2


@pytest.mark.slow
def test_a_run_that_raises_has_failed_and_says_why(federation: Federation) -> None:
    status = federation.wait(federation.submit({"mode": "raise"}), LIMIT)
    assert status.state == "finished:failed"
    assert "told to raise" in status.details


@pytest.mark.slow
def test_a_run_can_be_stopped(federation: Federation) -> None:
    run = federation.submit({"mode": "wait"})
    assert not federation.wait(run, 5.0).finished
    federation.flwr.stop(run)
    assert federation.wait(run, LIMIT).state == "finished:stopped"


@pytest.mark.slow
def test_an_unknown_setting_is_refused(federation: Federation) -> None:
    with pytest.raises(UserError, match="Invalid run configuration"):
        federation.submit({"no-such-setting": 1})


@pytest.mark.slow
def test_an_unregistered_key_is_refused(federation: Federation, tmp_path: Path) -> None:
    make_keys(federation.keys, [], ["gamma"])
    federation.nodes["gamma"] = {"name": "gamma"}
    try:
        with pytest.raises(UserError, match="ended at its start"):
            federation.start_node("gamma")
        federation.kill("gamma")
    finally:
        del federation.nodes["gamma"]


@pytest.mark.slow
def test_dead_executors_are_started_again(federation: Federation) -> None:
    """Without them a run would be pending for ever, and a node would never answer."""
    for name in ("executor", "executor@alpha"):
        os.kill(federation.processes[name].pid, signal.SIGKILL)
    status = federation.wait(federation.submit(), LIMIT)
    assert status.completed


@pytest.mark.drill
def test_a_killed_node_comes_back(federation: Federation) -> None:
    federation.kill("alpha")
    assert not living(federation.keys / "nodes" / "alpha")
    federation.start_node("alpha", patience=90.0)
    status = federation.wait(federation.submit(), LIMIT)
    assert status.completed


@pytest.mark.slow
def test_an_exception_leaves_no_process(tmp_path: Path) -> None:
    federation = build(tmp_path)

    def fail() -> None:
        with federation:
            federation.submit({"mode": "wait"})
            assert living(tmp_path)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert not living(tmp_path)


def test_no_process_is_lost_when_two_start_a_node_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that lives on unknown would keep every later one from being let in."""
    made: list[Any] = []

    class Slow:
        def __init__(self, words: list[str], **_: object) -> None:
            made.append(self)
            self.lives = True
            time.sleep(0.05)

        def alive(self) -> bool:
            return self.lives

        def kill(self) -> None:
            self.lives = False

        def output(self) -> str:
            return "SuperNode ID: 1"

    monkeypatch.setattr(launch, "Process", Slow)
    running = build(tmp_path)
    threads = [threading.Thread(target=running.start_node, args=["alpha"]) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) > 3
    assert {one for one in made if one.lives} == {*running.processes.values()}
    made[-1].kill()
    running._starting.add("alpha")
    running.supervise()  # which leaves it to whoever starts it
    assert len({one for one in made if one.lives}) == 1


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port}"), build(tmp_path, port=port):
            pass
    assert not living(tmp_path)


def test_a_certificate_for_another_host_is_named(tmp_path: Path) -> None:
    make_keys(tmp_path / "keys", ["fl.example.org"], NAMES)
    federation = Federation(
        echo_app.write(tmp_path / "app"), tmp_path / "work", keys=tmp_path / "keys", nodes={}
    )
    with pytest.raises(UserError, match="does not name the host"), federation:
        pass
    assert not living(tmp_path)


def test_a_process_ends_with_what_left_its_group(tmp_path: Path) -> None:
    # A child in a session of its own, as the SuperLink's executor is.
    grandchild = f"import time; time.sleep(600)  # {tmp_path}"
    child = (
        "import subprocess, sys, time; "
        f"subprocess.Popen([sys.executable, '-c', {grandchild!r}], start_new_session=True); "
        "print('ready', flush=True); time.sleep(600)"
    )
    process = Process(
        [sys.executable, "-c", child],
        log=tmp_path / "log",
        environment=dict(os.environ),
        folder=tmp_path,
    )
    while "ready" not in process.output():
        assert process.alive()
        time.sleep(0.05)
    assert living(tmp_path)
    process.kill()
    assert not process.alive()
    assert not living(tmp_path)


@pytest.mark.slow
def test_sigterm_leaves_no_process(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; sys.path.insert(0, sys.argv[1]); "
        "import test_launch\n"
        "with test_launch.build(Path(sys.argv[2])):\n    print('up', flush=True); time.sleep(600)"
    )
    line = [sys.executable, "-c", script, str(Path(__file__).parent), str(tmp_path)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as runner:
        assert runner.stdout is not None
        assert runner.stdout.readline() == "up\n"
        runner.send_signal(signal.SIGTERM)
        assert runner.wait(LIMIT) == 128 + signal.SIGTERM
    assert not living(tmp_path)
