"""Files are whole or not there, for whom they are meant, and named when a disk is full."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from trillium.files import clear_leftovers, names, write_atomic


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_modes_follow_the_umask_but_for_what_is_private(tmp_path: Path, umask: None) -> None:
    write_atomic(tmp_path / "open", "text")
    write_atomic(tmp_path / "private", b"state", private=True)
    assert mode(tmp_path / "open") == 0o640
    assert mode(tmp_path / "private") == 0o600
    write_atomic(tmp_path / "private", b"newer", private=True)
    assert mode(tmp_path / "private") == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["open", "private"]


def test_a_full_disk_is_said_of_the_file_and_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomic(path, "old")
    with monkeypatch.context() as full:
        full.setattr(
            "os.fsync", lambda handle: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full"))
        )
        with pytest.raises(OSError, match="full") as caught:
            write_atomic(path, "new")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_that_names_its_file_stays(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, names(tmp_path / "other"):
        (tmp_path / "missing").read_text()
    assert caught.value.filename == str(tmp_path / "missing")


def test_what_a_killed_process_left_is_cleared_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_atomic(tmp_path / ".hidden", "of the user")
    with monkeypatch.context() as killed:
        killed.setattr("os.fsync", lambda handle: (_ for _ in ()).throw(KeyboardInterrupt))
        killed.setattr(Path, "unlink", lambda path, **_: None)  # nobody clears up after a kill
        with pytest.raises(KeyboardInterrupt):
            write_atomic(tmp_path / "file", "half")
    assert len(list(tmp_path.iterdir())) == 2
    clear_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".hidden"]
