"""`trillium resume` after a run was ended in its middle, once by a real kill of its process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cli_help import Cli, trillium
from resumed import Killed
from trillium.experiment.folder import RunFolder
from trillium.federation.side import Metrics

ROUNDS = 4


@pytest.fixture
def words(hub: Path) -> list[str]:
    return [
        f"--model={hub / 'gpt2'}",
        f"--data={hub / 'classification.jsonl'}",
        "model.random_weights=true",
        "data.public_size=12",
        f"rounds={ROUNDS}",
        "adapter.target_modules=[c_attn]",
    ]


def stop_in_mid_run(monkeypatch: pytest.MonkeyPatch, words: list[str], out: Path) -> Path:
    """Run the command line in this process, end it with its third evaluation, return the folder."""
    write = RunFolder.metrics

    def dying(folder: RunFolder, line: Metrics) -> None:
        write(folder, line)
        if line["round"] == 2:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "metrics", dying)
        with pytest.raises(Killed):
            trillium(patched, *words, f"--out={out}")
    [folder] = out.iterdir()
    return folder


def kill_in_mid_run(monkeypatch: pytest.MonkeyPatch, words: list[str], out: Path) -> Path:
    """Start the command line, kill it once it has evaluated, and return the folder."""
    with subprocess.Popen(
        [sys.executable, "-c", "from trillium.cli.app import main; main()", *words, f"--out={out}"],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        deadline = time.monotonic() + 120
        while not any(len(p.read_text().splitlines()) > 3 for p in out.glob("*/metrics.jsonl")):
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    [folder] = out.iterdir()
    assert json.loads((folder / "status.json").read_text())["state"] == "running"
    return folder


def rows(folder: Path) -> list[dict[str, object]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


@pytest.mark.parametrize(
    ("end", "rounds"),
    [(stop_in_mid_run, ROUNDS), pytest.param(kill_in_mid_run, 40, marks=pytest.mark.slow)],
)
def test_a_killed_run_ends_as_if_it_had_not_been(
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    end: Callable[..., Path],
    rounds: int,
    cli: Cli,
) -> None:
    words.append(f"rounds={rounds}")
    folder = end(monkeypatch, ["run", *words], tmp_path / "killed")
    assert cli("resume", str(folder)) == 0
    assert cli("run", *words, f"--out={tmp_path / 'whole'}") == 0
    [whole] = (tmp_path / "whole").iterdir()
    adapter = "adapter/adapter_model.safetensors"
    assert (folder / adapter).read_bytes() == (whole / adapter).read_bytes()
    assert rows(folder) == rows(whole)
    assert len(rows(folder)) == rounds + 1
    assert (folder / "report.html").is_file()
    assert not list(folder.glob(".*"))


def test_a_killed_comparison_goes_on_with_what_is_left(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("arms:\n  zero_shot: {framework: zero_shot}\n  fedllm: {framework: fedllm}\n")
    command = ["compare", str(recipe), *words]
    folder = stop_in_mid_run(monkeypatch, command, tmp_path / "killed")
    first = (folder / "zero_shot_s0" / "status.json").read_text()
    assert cli("resume", str(folder)) == 0
    assert (folder / "zero_shot_s0" / "status.json").read_text() == first
    assert len(rows(folder / "fedllm_s0")) == ROUNDS + 1
    assert cli("resume", str(folder)) == 2


def test_what_cannot_be_resumed_is_said(words: list[str], tmp_path: Path, cli: Cli) -> None:
    assert "neither a run nor a comparison" in cli.refused("resume", str(tmp_path))
    out = tmp_path / "out"
    assert cli("run", *words, "rounds=1", f"--out={out}") == 0
    [folder] = out.iterdir()
    assert "this run has finished" in cli.refused("resume", str(folder))


def test_a_damaged_checkpoint_is_named(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    folder = stop_in_mid_run(monkeypatch, ["run", *words], tmp_path)
    newest = max((folder / "checkpoints").glob("server@*.pt"), key=lambda p: p.stat().st_mtime)
    newest.write_bytes(newest.read_bytes()[:100])
    error = cli.refused("resume", str(folder))
    assert newest.name in error
    assert "Remove the file" in error
    newest.unlink()
    assert cli("resume", str(folder)) == 0
    assert len(rows(folder)) == ROUNDS + 1
