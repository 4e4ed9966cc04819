"""Run folders that are made at the same time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from trillium.experiment.folder import RunFolder, claim, new_folder


def test_runs_that_begin_in_the_same_second_get_folders_of_their_own(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: new_folder(tmp_path, "run"), range(40)))
    assert len(set(folders)) == 40
    for folder in folders:
        assert RunFolder(folder, "fedllm").path == folder


def test_a_folder_that_holds_something_is_not_taken(tmp_path: Path) -> None:
    claim(tmp_path / "new")
    claim(tmp_path / "new")
    (tmp_path / "new" / "mine").touch()
    with pytest.raises(FileExistsError, match="holds something"):
        RunFolder(tmp_path / "new", "fedllm")
