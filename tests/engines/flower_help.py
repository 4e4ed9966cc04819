"""What the tests of a deployment share: a run that is watched, its processes, its link."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
from session_help import Proxy

from deployed import lines_of
from trillium.config.experiment import ExperimentConfig
from trillium.deploy.flower import RunStatus, Value
from trillium.deploy.launch import HOST, Federation
from trillium.deploy.prepare import RUNS, prepare_here
from trillium.deploy.processes import free_port
from trillium.errors import UserError
from trillium.experiment.folder import to_yaml

LIMIT = 600.0  # seconds; nothing is measured with it
PACE = 0.15  # seconds that a slowed link takes longer, each way; a round takes about a second then


def assert_whole(folder: Path, state: str) -> dict[str, Any]:
    """Check that nothing in a run folder is half-written, and return its status.

    A process that was killed may have left a file under a name of its own; the next start clears it.
    """
    found = json.loads((folder / "status.json").read_text())
    assert isinstance(found, dict)
    assert found["state"] == state, found
    assert lines_of(folder / "metrics.jsonl")
    assert lines_of(folder / "wire.jsonl")
    for path in folder.rglob("*") if state != "running" else ():
        assert not path.name.startswith("."), path
        assert path.suffix not in {".partial", ".tmp"}, path
    return found


def wait_for(condition: Callable[[], Any], what: str, seconds: float = LIMIT) -> Any:
    """Wait until a condition holds, and return what it returned."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.1)
    return found


def process_below(top: int, command: str) -> psutil.Process | None:
    """Return the newest process of a command below another one."""
    found = []
    with suppress(psutil.NoSuchProcess):
        for process in psutil.Process(top).children(recursive=True):
            with suppress(psutil.Error):
                if any(word.endswith(command) for word in process.cmdline()[:2]):
                    found.append(process)
    return max(found, key=lambda process: process.create_time(), default=None)


class Link(Proxy):
    """The link of all nodes to the sessions; it can be cut for one process alone."""

    def __init__(self, target: int) -> None:
        super().__init__(target)
        self._blocked: psutil.Process | None = None

    def cut_off(self, process: psutil.Process) -> None:
        """Close the connections of a process and refuse new ones."""
        self._blocked = process
        for near in self._sockets[::2]:
            with suppress(OSError):
                if not self.admits(near):
                    near.shutdown(socket.SHUT_RDWR)

    def let_back(self) -> None:
        """Carry everybody's connections again."""
        self._blocked = None

    def admits(self, near: socket.socket) -> bool:
        if self._blocked is None:
            return True
        port = near.getpeername()[1]
        return all(port != end.laddr.port for end in self._blocked.net_connections("tcp"))


class Deployment:
    """A federation on this machine whose nodes reach the sessions over a link of the test's."""

    def __init__(self, running: Federation, recipes: Mapping[str, ExperimentConfig]) -> None:
        self.running = running
        port = free_port(HOST)
        self.link = Link(port)
        self._settings: dict[str, Value] = {
            "session-bind": f"{HOST}:{port}",
            "session-address": f"{HOST}:{self.link.port}",
        }
        for name, config in recipes.items():
            recipe = running.app / "trillium_app" / f"{name}.yaml"
            recipe.write_text(to_yaml(config.tree()))

    def submit(self, recipe: str, **settings: Value) -> Run:
        """Start a run, slowed down, and follow it."""
        self.link.delay_seconds = PACE
        more = {name.replace("_", "-"): value for name, value in settings.items()}
        own: dict[str, Value] = {"recipe": f"{recipe}.yaml", "resume": False}
        return Run(self, {**self._settings, **own, **more})

    def resume(self, run: Run) -> Run:
        """Go on with a run that has stopped, and follow it."""
        return Run(self, {**run.settings, "resume": True}, run.folder)

    def client(self, name: str) -> psutil.Process | None:
        """Return the ClientApp of a node, if it has one now."""
        node = self.running.processes.get(f"executor@{name}")
        return None if node is None else process_below(node.pid, "flwr-clientapp")

    def server(self) -> psutil.Process:
        """Return the newest ServerApp."""
        found = process_below(self.running.processes["executor"].pid, "flwr-serverapp")
        assert found is not None
        return found


class Run:
    """A run that is followed in the background.

    Attributes:
        settings: with which it was submitted.
        folder: its run folder.
        lines: of the server's log so far.
    """

    def __init__(
        self,
        deployment: Deployment,
        settings: Mapping[str, Value],
        folder: Path | None = None,
    ) -> None:
        self.deployment, self.settings = deployment, settings
        self.lines: list[str] = []
        self._status: RunStatus | None = None
        runs = deployment.running.app.parent / RUNS
        before = {*runs.glob("*/config.yaml")}
        self.number = deployment.running.submit(settings)
        threading.Thread(target=self._follow, daemon=True).start()
        if folder is None:
            configs = self.until(lambda: {*runs.glob("*/config.yaml")} - before, "a run folder")
            folder = configs.pop().parent
        self.folder = folder

    def _follow(self) -> None:
        with suppress(UserError, KeyError):  # the test has ended before the run
            self._status = self.deployment.running.wait(self.number, 2 * LIMIT, self.lines.append)

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        """Wait until a condition holds while the run goes on."""

        def check() -> Any:
            over = self._status  # before the condition: the end may make it true
            found = condition()
            assert found or over is None, f"{what}: {over}\n" + "\n".join(self.lines)
            return found

        return wait_for(check, what + "\n" + "\n".join(self.lines[-40:]))

    def until_round(self, condition: Callable[[dict[str, Any]], Any], what: str) -> dict[str, Any]:
        """Wait for an evaluation, of the round after the newest or later, and return its line."""
        newest = len(self.rows())

        def rows() -> list[dict[str, Any]]:
            return [row for row in self.rows()[newest:] if condition(row)]

        return dict(self.until(rows, what)[0])

    def until_told(self, words: str) -> None:
        """Wait until the server's log has these words."""
        self.until(lambda: any(words in line for line in self.lines), words)

    def until_there(self, *names: str) -> dict[str, Any]:
        """Wait for a round in which these nodes take part."""
        return self.until_round(
            lambda row: (
                row["asked"] >= len(names)
                and row["asked"] == row["replied"] + len(row["missing"])
                and not {*names} & row["missing"].keys()
                and {*names} <= self.seen(row["round"])
            ),
            f"a round with {names}",
        )

    def until_missing(self, name: str) -> str:
        """Wait for a round in which a node is missing, and return why."""
        found = self.until_round(lambda row: name in row["missing"], f"a round without {name}")
        return str(found["missing"][name])

    def rows(self) -> list[dict[str, Any]]:
        """Return the complete lines of metrics.jsonl."""
        path = self.folder / "metrics.jsonl"
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def seen(self, number: int) -> set[str]:
        """Return who answered in a round, as far as the ledger is written."""
        text = (self.folder / "wire.jsonl").read_text()
        entries = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
        return {e["client"] for e in entries if e["round"] == number and e["direction"] == "up"}

    def finish(self) -> RunStatus:
        """Let the rest of the run go fast, and wait for its end."""
        self.deployment.link.delay_seconds = 0.0
        wait_for(lambda: self._status is not None, "the end of the run", 2 * LIMIT)
        assert self._status is not None
        return self._status


@contextmanager
def deployment(
    target: Path,
    recipes: Mapping[str, ExperimentConfig],
    start: list[str] | None = None,
    *,
    durable: bool = False,
) -> Iterator[tuple[Deployment, dict[str, dict[str, Value]]]]:
    """Start a federation for recipes that have the same data.

    Args:
        target: a new folder.
        recipes: by name.
        start: the nodes that are started; all of them by default.
        durable: as in `Federation`.

    Yields:
        The deployment, and the configuration of all nodes.
    """
    most = max(recipes.values(), key=lambda config: config.public_size)  # who needs most data
    nodes = prepare_here(most, target)
    running = Federation(
        target / "app",
        target / "work",
        keys=target / "keys",
        nodes={name: nodes[name] for name in start or nodes},
        durable=durable,
        variables={"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
    )
    deployed = Deployment(running, recipes)
    try:
        with running:
            yield deployed, nodes
    finally:
        deployed.link.close()


@contextmanager
def stopped(process: psutil.Process) -> Iterator[None]:
    """Hold a process still."""
    os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process.pid, signal.SIGCONT)
