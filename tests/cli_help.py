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


class Cli:
    """The command line with what it prints."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._patch, self._capsys = monkeypatch, capsys

    def __call__(self, *words: object) -> int:
        """Return the exit status."""
        return trillium(self._patch, *words)

    def done(self, *words: object) -> str:
        """Return what is printed; the status must be 0."""
        self._capsys.readouterr()
        status, printed = self(*words), self._capsys.readouterr()
        assert status == 0, printed.err
        return printed.out

    def refused(self, *words: object) -> str:
        """Return what is said of it; the status must be 2."""
        self._capsys.readouterr()
        status, printed = self(*words), self._capsys.readouterr()
        assert status == 2, printed
        return printed.err
