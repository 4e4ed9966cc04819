"""Fixtures of the tests of the command line."""

from __future__ import annotations

import pytest
from cli_help import Cli


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """The command line."""
    return Cli(monkeypatch, capsys)
