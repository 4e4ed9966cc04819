"""Fixtures of the tests of the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_help import Cli


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """The command line."""
    return Cli(monkeypatch, capsys)


@pytest.fixture
def words(hub: Path) -> list[str]:
    """Settings that make a run take a second."""
    return [
        f"--model={hub / 'bert'}",
        f"--data={hub / 'classification.jsonl'}",
        "model.random_weights=true",
        "data.public_size=12",
        "data.num_clients=2",
        "adapter.target_modules=[query]",
    ]
