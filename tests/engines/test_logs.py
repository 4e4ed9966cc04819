"""A log of a deployment: what another machine says can neither forge a line nor move the cursor."""

from __future__ import annotations

import json
import logging

import pytest

from trillium.engines.logs import log_to_screen

log = logging.getLogger("trillium.engines.test")


def test_a_message_is_one_printable_line(capsys: pytest.CaptureFixture[str]) -> None:
    log_to_screen({"server": ""})
    log.info("%s: lost: %s", "a", "no\n2026-01-01 INFO server: all is well\x1b[2J\x07\u202e")
    [line] = capsys.readouterr().out.splitlines()
    assert line.isprintable()
    assert line.endswith("INFO server: a: lost: no 2026-01-01 INFO server: all is well [2J  ")


def test_the_lines_of_a_traceback_are_set_apart(capsys: pytest.CaptureFixture[str]) -> None:
    log_to_screen({"server": ""})
    try:
        raise ValueError("it said:\n2026-01-01 INFO server: all is well\x1b[2J")
    except ValueError:
        log.exception("failed")
    first, *others = capsys.readouterr().out.splitlines()
    assert first.endswith("ERROR server: failed")
    assert all(line.startswith("  ") and line.isprintable() for line in others)
    assert others[-1].startswith("  2026-01-01 INFO server: all is well")


def test_a_line_of_json_holds_all_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    log_to_screen({"run": "one", "client": "a"}, "json")
    said = "no\nline\x1b[2J"
    try:
        raise ValueError(said)
    except ValueError:
        log.exception("failed: %s", said)
    [line] = capsys.readouterr().out.splitlines()
    assert line.isprintable()
    found = json.loads(line)
    assert (found["run"], found["client"], found["level"]) == ("one", "a", "ERROR")
    assert found["message"] == f"failed: {said}"
    assert "ValueError: no" in found["exception"]
