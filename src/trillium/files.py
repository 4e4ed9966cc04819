"""Files that are whole or not there at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

from trillium.errors import UserError

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


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file so that a crash leaves the old one or the new one, never half of it."""
    data = content.encode() if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
