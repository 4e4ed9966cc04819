"""Files that are whole or not there at all."""

from __future__ import annotations

import os
import re
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

from trillium.errors import UserError

_PART: Final = ".part"  # ends the name of a file that is being written
SERVER: Final = "server"  # whose checkpoints lie beside the clients' under this name
CLIENT_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
CLIENT_NAME_RULE: Final = (
    "Write 1 to 63 letters, digits, dots, dashes or underscores, a letter or digit first"
)
NODES: Final = "nodes.json"  # in the folder of a deployment's run: who of its nodes is there
RUN_LOCK: Final = "run.lock"  # in a run folder: the process that runs it holds it


@dataclass(frozen=True)
class MayBePath:
    """Marks a setting that names a file or folder of this machine, if there is one of that name."""


PathOrName = Annotated[str, MayBePath()]


def is_run_by_a_process(folder: Path) -> bool:
    """Whether a process holds the lock of a run folder; where that cannot be known, it may."""
    from filelock import FileLock, Timeout

    if not (folder / RUN_LOCK).is_file():
        return False
    try:
        with FileLock(folder / RUN_LOCK, blocking=False):
            return False
    except (Timeout, OSError):
        return True


def make_folder(path: Path, given: str) -> None:
    """Make a folder in which files are to be written, unless it is there already.

    Raises:
        UserError: it cannot be made, or nothing can be written there.
    """
    with _usable(path, given):
        path.mkdir(parents=True, exist_ok=True)
    check_writable(path, given)


def check_writable(path: Path, given: str) -> None:
    """Check that files can be written in a folder.

    Raises:
        UserError: they cannot.
    """
    with _usable(path, given):
        tempfile.TemporaryFile(dir=path).close()


@contextmanager
def _usable(path: Path, given: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        why = f"nothing can be written in the folder {path} ({error.strerror})"
        raise UserError(given, why, "Name a folder that you may write to") from error


def write_atomic(path: Path, content: str | bytes, *, private: bool = False) -> None:
    """Write a file so that a crash or a power cut leaves the old one or the new one, never half of it.

    Args:
        private: for its owner alone, whatever the umask allows others: states and rows.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_PART}")
    flags, mode = os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o666
    try:
        with names(path):
            with os.fdopen(os.open(temporary, flags, mode), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            sync(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sync(folder: Path) -> None:
    """Let a power cut leave the names in a folder as they are."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def clear_leftovers(folder: Path) -> None:
    """Remove what writes that were cut short left in a folder; nobody may be writing there."""
    for path in folder.glob(f".*{_PART}"):
        path.unlink(missing_ok=True)


@contextmanager
def names(path: Path) -> Iterator[None]:
    """Name a file in errors of the system that do not, as when a disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
