"""The log that a node keeps for its owner: each ask, and what left, one line each, chained by hashes.

A line is JSON. Its `hash` is SHA-256 of the line without it, and `previous` is that of the line before:
no line can be changed, taken out or put in without all later ones. `log.head` has the number and hash
of the last one, so that lines that lack at the end are noticed, too; `log.cut` those of the last one
that was removed for its age. Whoever can write all three can write another history, but not one that
ends with a hash that the owner has noted elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from filelock import FileLock

from trillium.errors import UserError
from trillium.files import names, write_atomic

LOG: Final = "log.jsonl"
HEAD: Final = "log.head"
CUT: Final = "log.cut"
LOCK: Final = "log.lock"
START: Final = "0" * 64
Line = dict[str, Any]


class Journal:
    """Appends to the log of a node, in the folder of its state."""

    def __init__(self, folder: Path) -> None:
        self._path, self._head = folder / LOG, folder / HEAD
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = FileLock(folder / LOCK, mode=0o600)
        self._size, self._number, self._hash = -1, 0, START

    def add(self, content: Mapping[str, Any], left: bytes = b"") -> None:
        """Append a line: what was asked, and what left because of it."""
        with self._lock, names(self._path):
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            with os.fdopen(descriptor, "r+b") as file:
                if os.fstat(file.fileno()).st_size != self._size:  # another process has written
                    self._catch_up(file.read())
                line = {
                    "number": self._number + 1,
                    "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                    **content,
                    "bytes_up": len(left),
                    "sha256": hashlib.sha256(left).hexdigest() if left else None,
                    "previous": self._hash,
                }
                self._number, self._hash = self._number + 1, _hash(line)
                file.write(_text({**line, "hash": self._hash}))
                file.flush()
                self._size = os.fstat(file.fileno()).st_size

    def sync(self) -> None:
        """Let what was written outlast a power cut, and note where the log ends."""
        if self._size >= 0:
            with self._path.open("rb") as file:
                os.fsync(file.fileno())
            write_atomic(self._head, f"{self._number} {self._hash}\n", private=True)

    def left(self, run: str) -> Counter[int]:
        """Return how many bytes have left in a run, by round."""
        found: Counter[int] = Counter()
        for line in read(self._path.parent) if self._path.exists() else ():
            if line["run"] == run and "round" in line:
                found[line["round"]] += line["bytes_up"]
        return found

    def _catch_up(self, content: bytes) -> None:
        lines = content.splitlines()
        self._number, self._hash = 0, START
        if lines:
            last = json.loads(lines[-1])
            self._number, self._hash = last["number"], last["hash"]


def read(folder: Path) -> Iterator[Line]:
    """Yield the lines of a node's log.

    Raises:
        UserError: there is none, or a line is none.
    """
    path, num_read = folder / LOG, 0
    try:
        with path.open(encoding="utf-8") as file:
            for text in file:
                line = json.loads(text)
                if not isinstance(line, dict):
                    raise ValueError("a line is no object")
                yield line
                num_read += 1
    except FileNotFoundError as error:
        raise UserError(
            str(path), "there is no such file", "Name the folder that node.toml calls `state`"
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(
            str(path),
            f"it cannot be read behind line {num_read} ({error})",
            "Name the folder that node.toml calls `state`",
        ) from error


def verify(folder: Path) -> tuple[int, str]:
    """Check the chain of a node's log; return the number and the hash of the last line.

    Raises:
        UserError: a line was changed, taken out or put in, or lines lack at the end.
    """
    number, previous = _place(folder / CUT) or (0, START)
    head = _place(folder / HEAD)
    has_head = head is None
    for line in read(folder):
        found = {key: value for key, value in line.items() if key != "hash"}
        if line.get("previous") != previous or line.get("number") != number + 1:
            raise _broken(folder, f"line {number + 1} does not follow the one before it")
        if line.get("hash") != _hash(found):
            raise _broken(folder, f"line {number + 1} was changed")
        number, previous = number + 1, line["hash"]
        has_head = has_head or (number, previous) == head
    if not has_head:
        raise _broken(folder, f"it lacks lines at its end, or was written anew: {HEAD} knows more")
    return number, previous


def forget(folder: Path, days: float) -> int:
    """Remove the lines that are older, but for the last one, and note where the log begins now.

    Returns:
        How many.
    """
    first = datetime.now(UTC) - timedelta(days=days)
    with FileLock(folder / LOCK, mode=0o600):
        verify(folder)
        lines = [*read(folder)]
        old = [line for line in lines[:-1] if datetime.fromisoformat(line["time"]) < first]
        if old:
            last = old[-1]
            write_atomic(folder / CUT, f"{last['number']} {last['hash']}\n", private=True)
            write_atomic(folder / LOG, b"".join(map(_text, lines[len(old) :])), private=True)
    return len(old)


def _place(path: Path) -> tuple[int, str] | None:
    if not path.exists():
        return None
    number, found = path.read_text(encoding="utf-8").split()
    return int(number), found


def _broken(folder: Path, why: str) -> UserError:
    return UserError(
        str(folder / LOG), why, "Compare it with a copy; lines before this one are as they were"
    )


def _hash(line: Line) -> str:
    return hashlib.sha256(json.dumps(line, sort_keys=True).encode()).hexdigest()


def _text(line: Line) -> bytes:
    return json.dumps(line).encode() + b"\n"
