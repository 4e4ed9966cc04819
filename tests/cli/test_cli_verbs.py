"""What all verbs have in common: help, versions, logging, and errors without a traceback."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import typer

from cli_help import Cli
from trillium.cli.app import app

VERBS = sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


@pytest.fixture
def words(words: list[str]) -> list[str]:
    return [*words, "rounds=1"]


def test_the_program_lists_whole_sentences(cli: Cli) -> None:
    shown = cli.done("-h")
    listed = " ".join(shown.partition("Commands:")[2].split())
    assert "..." not in listed
    assert listed.count(".") >= len(VERBS)
    assert all(f"\n  {verb} " in shown for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_help_is_plain(verb: str, cli: Cli) -> None:
    shown = {}
    for option in ("-h", "--help"):
        shown[option] = cli.done(verb, option)
    assert shown["-h"] == shown["--help"]
    assert "\\" not in shown["-h"]
    assert all(option in shown["-h"] for option in ("--verbose", "--quiet", "--log-file"))


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("columns", [60, 80])
def test_help_is_whole_at_any_width(
    verb: str, columns: int, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    """No line is longer than the screen, and every argument and option has its text."""
    monkeypatch.setenv("COLUMNS", str(columns))
    shown = cli.done(verb, "-h")
    assert max(map(len, shown.splitlines())) <= columns
    assert "\x1b" not in shown
    plain = " ".join(shown.split())
    command = typer.main.get_command(app).commands[verb]  # type: ignore[attr-defined]
    for parameter in command.params:
        assert parameter.help, parameter.name
        assert " ".join(parameter.help.split()) in plain


def test_the_shell_completes(monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    monkeypatch.setenv("_TRILLIUM_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "trillium ge")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert cli.done(monkeypatch).split() == ["generate"]


@pytest.mark.parametrize("option", ["-V", "--version"])
def test_version(option: str, cli: Cli) -> None:
    assert cli.done(option) == f"trillium {version('trillium')}\n"


def test_how_much_is_said(
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    cli: Cli,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli("run", "-q", *words, "--log-file", "run.log") == 0
    found = capsys.readouterr()
    assert "round 1/1" not in found.out
    assert "Report: " in found.out
    assert found.err == ""
    logged = (tmp_path / "run.log").read_text(encoding="utf-8")
    assert "INFO trillium.experiment.residents: loading model: " in logged
    assert "round 1 of 1: accuracy" in logged
    # Before the verb, too; what is said stands on standard error, and the log is added to.
    assert cli("--log-file", "run.log", "-v", "run", *words) == 0
    found = capsys.readouterr()
    assert "round 1/1" in found.out
    assert "INFO trillium.experiment.residents: loading model: " in found.err
    assert (tmp_path / "run.log").read_text(encoding="utf-8").startswith(logged)
    monkeypatch.setenv("TRILLIUM_LOG", "Info")
    assert cli("ls") == 0
    assert logging.getLogger("trillium").level == logging.INFO
    monkeypatch.delenv("TRILLIUM_LOG")
    assert cli("ls") == 0
    assert logging.getLogger("trillium").level == logging.WARNING


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["ls", "-q", "-v"], "Take one of them"),
        (["ls", "--log-file", "nowhere/run.log"], "it cannot be written"),
        (["compare", "fedllm=4"], "Write fedllm.KEY=VALUE"),
        (["compare", "bare.yaml"], "Write a.KEY=VALUE"),
        (["new", "run", "--to", "file/run.yaml"], "you may write to"),
        (["keys", "node", "file/keys", "--name", "a"], "Name another place"),
    ],
)
def test_no_traceback(
    words: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    if words[0] == "keys":
        pytest.importorskip("cryptography")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "bare.yaml").write_text("arms: {a: fedllm}\n", encoding="utf-8")
    said = cli.refused(*words)
    assert [line[:8].rstrip() for line in said.splitlines()] == ["Given:", "Problem:", "Instead:"]
    assert expected in said


def test_a_level_that_there_is_not(monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    monkeypatch.setenv("TRILLIUM_LOG", "verbose")
    assert "Choose one of: debug, error, info, warning" in cli.refused("ls")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="who may do all writes anywhere")
def test_a_working_directory_that_cannot_be_written(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    monkeypatch.chdir(tmp_path)
    tmp_path.chmod(0o500)
    try:
        for command in (["run", *words], ["compare", *words], ["new"]):
            assert "nothing can be written" in cli.refused(*command)
    finally:
        tmp_path.chmod(0o700)


def test_what_the_system_refuses_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cli: Cli
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path / "run.yaml"))

    monkeypatch.setattr(Path, "write_text", refused)
    assert "it cannot be read or written (Permission denied)" in cli.refused(
        "new", "run", "--to", tmp_path / "run.yaml"
    )


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_something_is_said_on_a_terminal_before_libraries_are_loaded() -> None:
    """Of `working` alone: nothing is loaded here that takes its time."""
    import pty

    code = "from trillium.cli.verbs import working\nwith working('Loading'): pass"
    main, side = pty.openpty()
    shown = subprocess.run(
        [sys.executable, "-c", code], stderr=side, stdout=subprocess.PIPE, check=True
    )
    os.close(side)
    said = os.read(main, 4096).decode()
    os.close(main)
    assert "Loading …" in said
    assert shown.stdout == b""
    piped = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert piped.stderr == piped.stdout == b""
