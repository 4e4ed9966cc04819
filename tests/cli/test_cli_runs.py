"""`trillium ls`, what a stop leaves behind, and which folders come into being."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import threading
from pathlib import Path

import pytest

from cli_help import Cli, trillium
from trillium.experiment.folder import RunFolder
from trillium.federation.side import Metrics

WIDE_OUT = "a folder with quite a long name, for which a narrow terminal has no room at all"


@pytest.fixture
def words(words: list[str]) -> list[str]:
    return [*words, "rounds=2"]


def stopped_by(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals, verb: str, *words: object
) -> int:
    """Run the command line, send this process a signal after round 1, and return the status."""
    write = RunFolder.metrics

    def signalled(folder: RunFolder, line: Metrics) -> None:
        write(folder, line)
        if line["round"] == 1:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "metrics", signalled)
        return trillium(patched, verb, *words)


@pytest.mark.skipif(os.name == "nt", reason="signals of Unix")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_stopped_run_is_listed_as_stopped_and_goes_on_by_the_hint(
    name: str,
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
    cli: Cli,
) -> None:
    assert threading.current_thread() is threading.main_thread()
    out, number = tmp_path / WIDE_OUT, signal.Signals[name]
    # In the background these are ignored, and what is ignored is left so.
    usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    was = signal.signal(number, usual)
    request.addfinalizer(lambda: signal.signal(number, was))
    before = signal.getsignal(number)
    assert stopped_by(monkeypatch, number, "run", *words, f"--out={out}") == 128 + number
    assert signal.getsignal(number) == before
    [folder] = out.iterdir()
    said = capsys.readouterr().err
    assert f"trillium resume '{folder}'" in said
    assert "Traceback" not in said
    [line] = csv.DictReader(io.StringIO(cli.done("ls", out)), delimiter="\t")
    assert (line["folder"], line["state"], line["rounds"]) == (str(folder), "stopped", "1")
    assert cli("resume", folder) == 0
    assert json.loads((folder / "status.json").read_text())["state"] == "finished"


def test_a_run_whose_process_was_killed_is_not_running_for_ever(tmp_path: Path, cli: Cli) -> None:
    alive, killed = (RunFolder(tmp_path / name, "fedllm") for name in ("alive", "killed"))
    killed._lock.release()  # as the system does when a process has ended
    lines = json.loads(cli.done("ls", tmp_path, "--json"))
    states = {Path(line["folder"]).name: line["state"] for line in lines}
    assert states == {"alive": "running", "killed": "stopped"}
    with pytest.raises(ValueError, match="a process still runs it"):
        RunFolder.reopen(alive.path)


def test_runs_are_listed_whole_at_any_width(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    out = tmp_path / WIDE_OUT
    command = ["compare", *words, "rounds=1", "--only=zero_shot,fedllm", f"--out={out}"]
    assert cli(*command) == 0
    [folder] = out.iterdir()
    piped = list(csv.DictReader(io.StringIO(cli.done("ls", out)), delimiter="\t"))
    assert [line["folder"] for line in piped] == [
        str(folder / arm) for arm in ("fedllm_s0", "zero_shot_s0")
    ]
    assert {line["model"] for line in piped} == {"bert"}
    assert {line["data"] for line in piped} == {"classification.jsonl"}
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    shown = cli.done("ls", out)
    assert shown.splitlines()[0] == str(folder)
    assert "bert · classification.jsonl · 20" in shown
    [fedllm] = [line for line in shown.splitlines() if line.startswith("    fedllm_s0 ")]
    assert "finished  round 1/1" in fedllm
    assert f"accuracy {100 * float(piped[0]['value']):.1f} %" in fedllm
    assert fedllm.endswith("B per client")


@pytest.mark.parametrize("verb", ["run", "compare"])
@pytest.mark.parametrize(
    "mistake",
    [
        "--data=missing.csv",
        "data.source.label=no_such_column",
        "model.id=no/such/model",
        "adapter.target_modules=[no_such_layer]",
        "training.batch_size=none",
    ],
)
def test_a_mistake_leaves_no_folder(
    verb: str, mistake: str, words: list[str], tmp_path: Path, cli: Cli
) -> None:
    command = [verb, *words, mistake, f"--out={tmp_path / 'runs'}"]
    error = cli.refused(*command)
    assert "Traceback" not in error
    assert not list((tmp_path / "runs").glob("*"))


@pytest.mark.parametrize("verb", ["run", "compare"])
def test_runs_that_cannot_be_written_are_said_before_they_begin(
    verb: str, words: list[str], tmp_path: Path, cli: Cli
) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "runs"):
        error = cli.refused(verb, *words, "--out", out)
        assert error.startswith(f"Given:   --out {out}\nProblem: nothing can be written")
