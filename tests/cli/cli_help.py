"""The command line, as the tests type it."""

from __future__ import annotations

import sys

import pytest

from trillium.cli import app


def trillium(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """Run the command line in this process and return its exit status."""
    monkeypatch.setattr(sys, "argv", ["trillium", *map(str, words)])
    try:
        app.main()
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
            return 1
        return int(stop.code or 0)
    return 0
