"""A whole federation on this machine: real processes, TLS and node authentication.

For a first try and for tests. The processes are those of a deployment (`flower-superlink`, one
`flower-supernode` for each node, `flwr run`), on the loopback address and free ports; all that they
write is below one folder, and leaving the `with` block kills every one of them.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Final, Self

from trillium.deploy.flower import (
    CONNECTION,
    Flwr,
    RunStatus,
    Value,
    answers,
    command,
    environment,
    toml,
    write_connection,
)
from trillium.deploy.processes import Process, free_port, port_taken
from trillium.errors import UserError

HOST: Final = "127.0.0.1"
START_SECONDS: Final = 60.0
EXECUTOR: Final = "executor"
LOOK_SECONDS: Final = 2.0
RESTART_SECONDS: Final = 10.0  # between two starts of what dies
_POLL_SECONDS: Final = 0.1
_ERROR: Final = " ERROR run="  # so a node's own lines of this level begin


class Federation:
    """A SuperLink and its SuperNodes on this machine, for the length of a `with` block.

    Entering starts the SuperLink, registers the nodes by their names, starts them, and waits until
    all of them are online. `processes` has what runs, by name. Beside the SuperLink and each node runs
    an executor (Flower's SuperExec), without which no run would ever begin; `wait` starts it again if
    it has died, and nodes, too.

    Args:
        app: the Flower app; every process runs in the folder around it, so relative paths in
            settings count from there.
        work: where logs (`logs/<process>.log`), Flower's state and configuration go.
        keys: of `make_keys`; the server's certificate must hold 127.0.0.1.
        port: of the SuperLink; a free one if it is 0.
        durable: keep the SuperLink's state on disk, so that a killed and restarted SuperLink goes on
            with the run.
    """

    def __init__(
        self,
        app: Path,
        work: Path,
        *,
        keys: Path,
        nodes: Mapping[str, Mapping[str, Value]],
        port: int = 0,
        durable: bool = False,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        if taken := {"superlink", EXECUTOR} & nodes.keys():
            raise UserError(
                f"node {taken.pop()!r}", "a process of the server has this name", "Choose another"
            )
        self.app, self.work, self.keys = app.resolve(), work.resolve(), keys.resolve()
        self.nodes, self.durable = dict(nodes), durable
        self._port = port
        self._variables = dict(variables or {})
        self._ports: dict[str, int] = {}
        self._restarted: dict[str, float] = {}
        self._looked = 0.0
        self._sigterm: Callable[[int, FrameType | None], object] | int | None = None
        self._closed = False
        self._starting: set[str] = set()
        self._one_at_a_time = threading.RLock()  # `wait` supervises, perhaps in another thread
        self.processes: dict[str, Process] = {}
        self.flwr = Flwr(self._environment("flwr"), self.app.parent)

    @property
    def address(self) -> str:
        """Where the SuperLink listens, host:port."""
        return f"{HOST}:{self._port}"

    def __enter__(self) -> Self:
        self._closed = False
        try:
            # `kill` and time limits end us with SIGTERM, which by default skips every `finally`.
            if threading.current_thread() is threading.main_thread():
                self._sigterm = signal.signal(signal.SIGTERM, _exit)
            self.start_superlink()
            for name in self.nodes:
                self.register(name)
            for name in self.nodes:
                self._spawn_node(name)
            for name in self.nodes:
                self._wait_online(name)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill every process of the federation; a `wait` in another thread ends too."""
        self._closed = True
        try:
            while self.processes:
                self.processes.popitem()[1].kill()
        finally:
            if self._sigterm is not None:
                signal.signal(signal.SIGTERM, self._sigterm)
                self._sigterm = None

    def start_superlink(self) -> None:
        """Start the SuperLink, or start it again on the same port, and wait until it answers."""
        self._port = self._port or free_port(HOST)
        if port_taken(HOST, self._port):
            raise UserError(
                f"port {self._port}", "another program listens on it", "Choose another, or 0"
            )
        write_connection(self._home("flwr"), self.address, self.keys / "ca.crt")
        tls = {"ca-certfile": "ca.crt", "certfile": "server.crt", "keyfile": "server.key"}
        words = [f"--ssl-{option}={self.keys / file}" for option, file in tls.items()]
        words += ["--enable-supernode-auth", "--disable-runtime-dependency-installation"]
        words += [f"--host={HOST}", f"--port={self._port}", "--isolation=process"]
        if self.durable:
            words += [f"--database={self.work / 'superlink.db'}"]
        superlink = self._spawn("superlink", ["flower-superlink", *words])
        authority = self.keys / "ca.crt"
        self._wait("superlink", superlink, lambda: answers(self.address, authority))
        if EXECUTOR not in self.processes:
            self._spawn_executor(EXECUTOR)

    def register(self, name: str) -> None:
        """Make a node's public key known to the SuperLink, under the node's name."""
        key = self.keys / "nodes" / name / "node_key.pub"
        self.flwr.register(key, name)

    def start_node(self, name: str, patience: float = 0.0) -> None:
        """Start a node and wait until it is online.

        For `patience` seconds a node that ended at its start is started again: one that was killed
        is refused until its last heartbeat is 60 s old.
        """
        deadline = time.monotonic() + patience
        self._starting.add(name)
        try:
            while True:
                self._spawn_node(name)
                try:
                    return self._wait_online(name)
                except UserError:
                    if time.monotonic() > deadline:
                        raise
                    self.kill(name)
        finally:
            self._starting.discard(name)

    def kill(self, name: str) -> None:
        """Kill (-9) a process of the federation with all that it started."""
        with self._one_at_a_time:
            for one in (name, f"{EXECUTOR}@{name}"):
                process = self.processes.pop(one, None)
                if process is not None:
                    process.kill()

    def supervise(self) -> None:
        """Start again what has died, but for the SuperLink, which knows the runs."""
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:  # it reads the table of all processes
            return
        self._looked = now
        with self._one_at_a_time:
            for name, process in list(self.processes.items()):
                is_executor = name.startswith(EXECUTOR)
                is_supervised = is_executor or name in self.nodes
                is_starting = name.removeprefix(f"{EXECUTOR}@") in self._starting
                if not is_supervised or is_starting or process.alive():
                    continue
                if now - self._restarted.get(name, -RESTART_SECONDS) < RESTART_SECONDS:
                    continue
                self._restarted[name] = now
                if is_executor:
                    self._spawn_executor(name)
                else:
                    self._spawn_node(name)
                    self._spawn_executor(f"{EXECUTOR}@{name}")

    def submit(self, settings: Mapping[str, Value] | None = None) -> int:
        """Start a run of the app with changed settings, and return its id."""
        return self.flwr.run(self.app, settings or {})

    def wait(
        self, run: int, seconds: float, on_line: Callable[[str], object] | None = None
    ) -> RunStatus:
        """Wait for a run to end, or until time is up.

        `on_line` gets each line of its log, and each error in the log of a node, once.
        """
        deadline = time.monotonic() + seconds
        num_lines = 0
        num_errors = {name: len(self._errors(name)) for name in self.nodes}
        while True:
            follower = self._spawn(f"run_{run}", ["flwr", "log", str(run), CONNECTION, "--stream"])
            while follower.alive() and time.monotonic() < deadline:
                num_lines = _pass_on(follower.output(), num_lines, on_line, ended=False)
                for name, number in num_errors.items():
                    errors = "".join(f"{error}\n" for error in self._errors(name))
                    num_errors[name] = _pass_on(errors, number, on_line, ended=True)
                self.supervise()
                time.sleep(_POLL_SECONDS)
            self.kill(f"run_{run}")
            num_lines = _pass_on(follower.output(), num_lines, on_line, ended=True)
            status = self._status_if_reachable(run)
            if status.finished or time.monotonic() > deadline:
                return status
            # The stream broke off, as it does when a SuperLink restarts: it begins anew.
            time.sleep(1.0)

    def _errors(self, name: str) -> list[str]:
        """Return the lines with which a node has said what went wrong."""
        process = self.processes.get(f"{EXECUTOR}@{name}")
        if process is None:
            return []
        return [line for line in process.output().splitlines() if _ERROR in line]

    def _status_if_reachable(self, run: int) -> RunStatus:
        try:
            return self.flwr.status(run)
        except UserError:
            if self.durable:
                return RunStatus("unreachable", "the SuperLink does not answer")
            raise

    def _spawn_node(self, name: str) -> None:
        folder = self.work / "nodes" / name
        folder.mkdir(parents=True, exist_ok=True)
        config = folder / "node.toml"
        config.write_text(toml(self.nodes[name]), encoding="utf-8")
        port = free_port(HOST, {self._port, *self._ports.values()})
        self._ports[name] = port
        key = self.keys / "nodes" / name / "node_key"
        words = [f"--superlink={self.address}", f"--root-certificates={self.keys / 'ca.crt'}"]
        words += [f"--auth-supernode-private-key={key}", f"--node-config={config}"]
        words += [f"--port={port}", "--isolation=process"]
        self._spawn(name, ["flower-supernode", *words])

    def _spawn_executor(self, name: str) -> None:
        """Start the executor of the SuperLink, or of a node."""
        node = name.partition("@")[2]
        safe = "--insecure" if node else f"--root-certificates={self.keys / 'ca.crt'}"
        address = f"{HOST}:{self._ports[node]}" if node else self.address
        self._spawn(name, ["flower-superexec", safe, f"--runtime-api-address={address}"])

    def _wait_online(self, name: str) -> None:
        process = self.processes[name]
        self._wait(name, process, lambda: "SuperNode ID: " in process.output())
        self._spawn_executor(f"{EXECUTOR}@{name}")

    def _wait(self, name: str, process: Process, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not ready():
            if not process.alive():
                raise UserError(
                    name, f"it ended at its start. Its log ends:\n{process.tail()}\n", "See above"
                )
            if time.monotonic() > deadline:
                raise UserError(
                    name,
                    f"not ready after {START_SECONDS:.0f} s. Its log ends:\n{process.tail()}\n",
                    "See above",
                )
            time.sleep(_POLL_SECONDS)

    def _spawn(self, name: str, words: list[str]) -> Process:
        with self._one_at_a_time:
            self.kill(name)
            process = self.processes[name] = Process(
                [command(words[0]), *words[1:]],
                log=self.work / "logs" / f"{name}.log",
                environment=self._environment("flwr" if words[0] == "flwr" else name),
                folder=self.app.parent,
            )
        if self._closed:  # meanwhile, by another thread
            self.kill(name)
            raise UserError(name, "the federation has ended", "Start it inside the `with` block")
        return process

    def _environment(self, name: str) -> dict[str, str]:
        return environment(self._home(name), self._variables)

    def _home(self, name: str) -> Path:
        # One for each process: two that unpack the same app at once get into each other's way.
        return self.work / "flower" / name


def _pass_on(
    output: str, num_lines: int, on_line: Callable[[str], object] | None, *, ended: bool
) -> int:
    """Call `on_line` with the complete lines after the first `num_lines`; return how many there are.

    A stream that begins anew repeats what came before.
    """
    lines = output.splitlines(keepends=True)
    if lines and not ended and not lines[-1].endswith("\n"):
        lines.pop()
    for line in lines[num_lines:]:
        if on_line is not None:
            on_line(line.rstrip("\n"))
    return max(num_lines, len(lines))


def _exit(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
