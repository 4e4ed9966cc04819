"""Fixtures shared by all tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import tiny


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Matrices this small are slower on several threads, by far on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tiny models in hub format and of data files."""
    return tiny.write_hub(tmp_path_factory.mktemp("hub"))


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of certificates for a server on this machine and three nodes."""
    from trillium.deploy.keys import make_keys

    folder = tmp_path_factory.mktemp("certificates") / "keys"
    make_keys(folder, ["127.0.0.1", "localhost"], ["a", "b", "c"])
    return folder
