"""Child processes that end with everything they started."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

_PROC: Final = Path("/proc")
_TAIL_LINES: Final = 20


class Process:
    """One command with a log file, continued if it is there, in a process group of its own.

    What it starts may leave the group (Flower's SuperLink puts its executor into a new session), so
    the groups of its descendants are noted each time it is looked at, and are killed with it.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        log: Path,
        environment: Mapping[str, str],
        folder: Path,
    ) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        with log.open("ab") as output:
            self._log_start = output.tell()
            self._popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=folder,
                start_new_session=True,
            )
        self.pid = self._popen.pid
        self._groups: dict[int, int | None] = {self.pid: _started(self.pid)}

    def alive(self) -> bool:
        """Return whether the command itself still runs."""
        self._note(_table())
        return self._popen.poll() is None

    def output(self) -> str:
        """Return what this start of the command wrote to the log."""
        with self.log.open("rb") as file:
            file.seek(self._log_start)
            return file.read().decode("utf-8", "replace")

    def tail(self) -> str:
        """Return the last lines of the output."""
        lines = [line for line in self.output().splitlines() if line.strip()]
        return "\n".join(lines[-_TAIL_LINES:]) or "(it wrote nothing)"

    def kill(self) -> None:
        """Kill (-9) the command and all that it started, and wait until they are gone."""
        while living := self._living():
            for pid in living:
                _kill(pid)
            self._popen.poll()
            time.sleep(0.02)
        self._popen.wait()

    def _living(self) -> list[int]:
        table = _table()
        self._note(table)
        if not table:  # no /proc: Flower's own watch on the parent ends what left the group
            return [] if self._popen.poll() is not None else [-self.pid]
        return [row.pid for row in table.values() if row.group in self._groups and not row.zombie]

    def _note(self, table: Mapping[int, _Row]) -> None:
        for group, start in list(self._groups.items()):
            leader = table.get(group)
            if leader is not None and leader.started != start:
                del self._groups[group]  # the number went to a process that is not ours
        found = {self.pid} if self.pid in self._groups else set()
        while more := {row.pid for row in table.values() if row.parent in found} - found:
            found |= more
        for group in {table[pid].group for pid in found if pid in table} - self._groups.keys():
            leader = table.get(group)
            self._groups[group] = leader.started if leader else None


class _Row(NamedTuple):
    pid: int
    parent: int
    group: int
    started: int
    zombie: bool


def _table() -> dict[int, _Row]:
    """Return the processes of this machine by id; empty where there is no /proc."""
    rows = (_row(entry) for entry in _PROC.glob("[0-9]*"))
    return {row.pid: row for row in rows if row is not None}


def _row(entry: Path) -> _Row | None:
    try:
        text = (entry / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:  # it ended meanwhile
        return None
    # The name, in brackets, may hold spaces and brackets of its own: count from the last one.
    fields = text.rpartition(")")[2].split()
    return _Row(int(entry.name), int(fields[1]), int(fields[2]), int(fields[19]), fields[0] == "Z")


def _started(pid: int) -> int | None:
    row = _row(_PROC / str(pid))
    return row.started if row else None


def _kill(pid: int) -> None:
    try:
        if pid < 0:
            os.killpg(-pid, signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def free_port(host: str, reserved: Collection[int] = ()) -> int:
    """Return a TCP port on which nothing listens now, and which nobody reserved."""
    while True:
        with socket.socket() as probe:
            probe.bind((host, 0))
            port = int(probe.getsockname()[1])
        if port not in reserved:
            return port


def port_taken(host: str, port: int) -> bool:
    """Return whether a server could not listen on this port now."""
    with socket.socket() as probe:
        # As servers do: a port whose last connections are still in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return True
    return False
