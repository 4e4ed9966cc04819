"""The run folder: append-only JSONL is the source of truth; nothing else is half-written."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import yaml
from filelock import FileLock, Timeout

from trillium.errors import UserError
from trillium.federation.checkpoint import Checkpoints
from trillium.files import RUN_LOCK, clear_leftovers, make_folder, names, sync, write_atomic

log = logging.getLogger(__name__)
APPENDED = ("wire.jsonl", "metrics.jsonl")
MOMENT = 0.5  # seconds; who only looks whether a run goes on holds its lock for less


class RunFolder:
    """Writes the files of one run.

    Attributes:
        path: the folder; it is made, or is empty.
        deployed: whether its clients are nodes on machines of their own: no simulation may go on with
            it, and none may pass for it.
        kept_round: the round whose model is shipped, once that is known.
        failed_rounds: how often a round has failed for want of replies, by its number.
        lost_bytes: of files that are appended to, as far as they were there no more on a resume.
    """

    def __init__(self, path: Path, arm: str, *, deployed: bool = False) -> None:
        claim(path)
        self.path, self.arm, self.deployed = path, arm, deployed
        self._started, self._resumed = time.time(), 0
        self._digest: str | None = None
        self.kept_round: int | None = None
        self.failed_rounds: dict[int, int] = {}
        self.lost_bytes: dict[str, int] = {}
        self._lock = locked(path)
        self.status("running")

    @classmethod
    def reopen(cls, path: Path, *, deployed: bool = False) -> Self:
        """Return the folder of a run that was stopped, to go on with it.

        Raises:
            UserError: a process still runs it, or it is a deployment's and this is none.
        """
        status = json.loads((path / "status.json").read_text(encoding="utf-8"))
        if status.get("deployed", False) != deployed:
            why = "its clients are nodes on machines of their own, and none of them is here"
            instead = "Go on with it in its deployment: flwr run app trillium"
            if deployed:
                why = "its clients were simulated, and nodes would go on with other rows"
                instead = f"Write trillium resume {path}"
            raise UserError(str(path), why, instead)
        lock = locked(path)
        found = cls.__new__(cls)
        found.deployed = deployed
        found.path, found.arm, found._lock = path, str(status["arm"]), lock
        found._started = datetime.fromisoformat(status["started"]).timestamp()
        found._resumed, found._digest = int(status["resumed"]) + 1, status.get("config")
        found.kept_round = None
        failed = status.get("failed_rounds", {})
        found.failed_rounds = {int(number): int(count) for number, count in failed.items()}
        found.lost_bytes = status.get("lost_bytes", {})
        clear_leftovers(path)
        found.checkpoints.clear_leftovers()
        found.status("running")
        return found

    def ended(self, error: BaseException) -> None:
        """Say that the run has ended before its end: `stopped` by its user, or `failed`."""
        if isinstance(error, KeyboardInterrupt):
            self.status("stopped", "it was interrupted")
        else:
            self.status("failed", f"{type(error).__name__}: {error}")

    def status(self, state: str, error: str | None = None) -> None:
        """Say how far the run is: `running`, or one of the ends, which let it go.

        These are `finished`, `stopped` and `failed`.
        """
        failed = {str(number): count for number, count in self.failed_rounds.items()}
        content = {
            "state": state,
            "arm": self.arm,
            "error": error,
            "seconds": time.time() - self._started,
            "resumed": self._resumed,
            "deployed": self.deployed,
            "config": self._digest,
            "kept_round": self.kept_round,
            "failed_rounds": failed,
            "lost_bytes": self.lost_bytes,
            "started": datetime.fromtimestamp(self._started, UTC).isoformat(
                timespec="milliseconds"
            ),
        }
        self.json("status.json", content)
        if state == "finished":
            Path(self._lock.lock_file).unlink(missing_ok=True)
        if state != "running":
            self._lock.release()

    def asked(self, tree: Mapping[str, Any]) -> None:
        """Note what the run was asked for, before data was read: it is known by that."""
        self._digest = self._digest or digest(tree)

    def config(self, tree: Mapping[str, Any]) -> None:
        """Write the resolved configuration."""
        self.asked(tree)
        write_atomic(self.path / "config.yaml", to_yaml(tree))

    def json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file at once."""
        write_atomic(self.path / name, json.dumps(content, indent=1))

    def metrics(self, line: Mapping[str, Any]) -> None:
        """Append one evaluation."""
        path = self.path / "metrics.jsonl"
        with names(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(_strict(line), allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def positions(self) -> dict[str, int]:
        """Return how long the files are that are appended to, in bytes; what they hold is on disk."""
        sync(self.path)
        paths = [self.path / name for name in APPENDED]
        return {path.name: path.stat().st_size if path.exists() else 0 for path in paths}

    @property
    def checkpoints(self) -> Checkpoints:
        """What the sides hold, until the run has finished."""
        return Checkpoints(self.path / "checkpoints")

    def evaluations(self) -> list[dict[str, Any]]:
        """Return the evaluations that are written down."""
        path = self.path / "metrics.jsonl"
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        return [json.loads(line) for line in text.splitlines()]

    def cut(self, positions: Mapping[str, int]) -> None:
        """Cut the appended files back to where they were.

        One that is shorter than it was ends with its last whole line. The state is whole all the same,
        so the run goes on, and `status.json` says for good how many bytes are lost.
        """
        for name in APPENDED:
            path, wanted = self.path / name, positions.get(name, 0)
            size = path.stat().st_size if path.exists() else 0
            if size < wanted:
                wanted = path.read_bytes().rfind(b"\n") + 1 if size else 0
                lost = positions[name] - wanted
                self.lost_bytes[name] = self.lost_bytes.get(name, 0) + lost
                self.status("running")
                log.warning("%s has lost %d bytes since the checkpoint was written", path, lost)
            if size > wanted:
                os.truncate(path, wanted)


def _strict(value: Any) -> Any:
    """Return a tree with `null` for each number that JSON has no word for."""
    if isinstance(value, Mapping):
        return {key: _strict(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def locked(path: Path) -> FileLock:
    """Return a lock on a run, or on a folder of runs, which ends with the process at the latest."""
    lock = FileLock(path / RUN_LOCK)
    try:
        lock.acquire(timeout=MOMENT)
    except Timeout as error:
        raise UserError(
            str(path), "a process still runs it", "Wait for its end, or stop it first"
        ) from error
    return lock


def is_finished(path: Path) -> bool:
    """Whether the run of a folder has come to its end."""
    status = json.loads((path / "status.json").read_text(encoding="utf-8"))
    return bool(status["state"] == "finished")


def is_of(path: Path, tree: Mapping[str, Any]) -> bool:
    """Whether the run of a folder was begun with this configuration."""
    status = json.loads((path / "status.json").read_text(encoding="utf-8"))
    return bool(status.get("config") == digest(tree))


def digest(tree: Mapping[str, Any]) -> str:
    """Return what a resolved configuration is known by."""
    text = json.dumps(tree, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def to_yaml(tree: Mapping[str, Any]) -> str:
    """Return a tree as YAML, keys in their order."""
    return yaml.safe_dump(dict(tree), sort_keys=False, allow_unicode=True)


def claim(path: Path) -> None:
    """Make a folder, or take one that is empty.

    Raises:
        FileExistsError: it holds something.
    """
    path.mkdir(parents=True, exist_ok=True)
    if any(path.iterdir()):
        raise FileExistsError(f"{path} holds something already")


def discard(path: Path) -> bool:
    """Remove a folder in which no run has measured anything, nor failed for a reason of its own.

    Returns:
        Whether it was removed.
    """
    if any(found.name in (APPENDED[1], "traceback.txt") for found in path.rglob("*.*")):
        return False
    shutil.rmtree(path)
    return True


def new_folder(parent: Path, name: str) -> Path:
    """Make an empty folder in `parent`, named by the time and `name`, which is nobody else's.

    Raises:
        UserError: nothing can be written in `parent`.
    """
    make_folder(parent, f"--out {parent}")
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    for number in itertools.count(1):
        path = parent / f"{stamp}_{name}{f'_{number}' if number > 1 else ''}"
        try:
            path.mkdir()
        except FileExistsError:  # of a run that began in the same second
            continue
        return path
    raise AssertionError("there is always a further number")
