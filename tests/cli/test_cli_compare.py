"""`trillium compare`: side by side, over grids, tuned on rows of their own, and nothing made twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cli_help import Cli, trillium
from trillium.config.experiment import experiment
from trillium.experiment import workers
from trillium.experiment.host import in_process
from trillium.frameworks.kd.protocol import KD

ADAPTER = "adapter/adapter_model.safetensors"
# A shell that runs its commands in the background lets them ignore interrupts.
HEARS = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
PROGRAM = "from trillium.cli.app import main; main()"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        """
about: Two ways to learn.
rounds: 2
seeds: [1, 2]
reach: [0.1]
grid:
  data.partition: [iid, {name: dirichlet, alpha: 0.5}]
tuning:
  seed: 7
  settings: {rounds: 1}
  grid: {fedllm.training.optimizer.lr: [1.0e-9, 0.03]}
arms:
  fedllm: {framework: fedllm}
  kd: {framework: kd}
""",
        encoding="utf-8",
    )
    return path


def measured(folder: Path) -> list[dict[str, Any]]:
    """All lines of metrics and ledger, without what time took."""
    lines = []
    for name in ("metrics.jsonl", "wire.jsonl"):
        for text in (folder / name).read_text(encoding="utf-8").splitlines():
            lines.append({k: v for k, v in json.loads(text).items() if k != "seconds"})
    return lines


def compared(monkeypatch: pytest.MonkeyPatch, out: Path, *words: object) -> Path:
    before = {*out.glob("*")}
    assert trillium(monkeypatch, "compare", *words, "--out", out) == 0
    [folder] = {*out.glob("*")} - before
    return folder


def test_two_at_a_time_give_what_one_after_the_other_gives(
    words: list[str],
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    cli: Cli,
) -> None:
    one = compared(monkeypatch, tmp_path / "one", recipe, *words, "--only=fedllm", "--seeds=1,")
    capsys.readouterr()
    lost = ["kd.fleet.failure_rate=0.99", "kd.fleet.min_replies=2"]
    command = [
        "compare",
        recipe,
        *words,
        *lost,
        "--seeds=1,",
        "--workers=2",
        "--out",
        tmp_path / "two",
    ]
    assert cli(*command) == 1
    [two] = (tmp_path / "two").iterdir()
    places = ("iid", "dirichlet_0.5")
    runs = [f"fedllm_{place}_s1" for place in places]
    for run in runs:
        assert measured(one / run) == measured(two / run)
        assert (one / run / ADAPTER).read_bytes() == (two / run / ADAPTER).read_bytes()
    out, error = capsys.readouterr()
    assert all(f"arm {run[:-3]}  seed 1  round 2/2" in out for run in runs)
    # What fails is said in full, and the others go on.
    assert error.count("min_replies is 2") == error.count("failed: ") == 2
    states = {p.parent.name: json.loads(p.read_text())["state"] for p in two.glob("*/status.json")}
    assert states == {
        f"{arm}_{place}_s1": state
        for arm, state in (("fedllm", "finished"), ("kd", "failed"))
        for place in places
    }
    shown = (two / "table.md").read_text(encoding="utf-8")
    assert "Two ways to learn." in shown
    lines = [line.split(" | ") for line in shown.splitlines() if line.startswith("| ")]
    assert [line[0].strip("| ") for line in lines[2:4]] == [run[:-3] for run in runs]
    column = lines[0].index("Bytes to 10 %")
    assert all(line[column].endswith("B") for line in lines[2:4])


def test_settings_are_chosen_by_rows_that_no_table_reports(
    words: list[str],
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    cli: Cli,
) -> None:
    tuned = compared(monkeypatch, tmp_path / "runs", recipe, *words, "--tune")
    assert "fedllm: training.optimizer.lr=" in capsys.readouterr().out
    configs = [yaml.safe_load(path.read_text()) for path in tuned.glob("*/config.yaml")]
    assert [config["training"]["optimizer"]["lr"] for config in configs].count(0.03) == 1
    assert {config["seed"] for config in configs} == {7}
    assert {config["rounds"] for config in configs} == {1}
    assert {config["data"]["validation_fraction"] for config in configs} == {0.1}
    chosen = tuned / "chosen.yaml"

    def reached(path: Path) -> tuple[float, float]:
        last = json.loads(path.read_text().splitlines()[-1])
        return last["accuracy"], -last["loss"]

    best = max(tuned.glob("*/metrics.jsonl"), key=reached)
    expected = yaml.safe_load((best.parent / "config.yaml").read_text())["training"]["optimizer"]
    assert "would look too good" in cli.refused("compare", chosen, "--seeds=7,8")
    folder = compared(monkeypatch, tmp_path / "runs", chosen, "--seeds=1,", "--only=fedllm_iid")
    config = yaml.safe_load((folder / "fedllm_iid_s1" / "config.yaml").read_text())
    assert config["training"]["optimizer"]["lr"] == expected["lr"]
    assert config["data"]["validation_fraction"] == 0
    assert config["rounds"] == 2
    assert f"training.optimizer.lr={expected['lr']}" in (folder / "table.md").read_text()
    assert "--tune" in cli.refused("compare", *words, "--tune")


def alive(group: int) -> list[str]:
    """Processes of a group that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, of_group = path.read_text().rpartition(")")[2].split()[:3]
            if int(of_group) == group and state != "Z":
                found.append(path.parent.name)
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_an_interrupt_ends_all_processes(words: list[str], tmp_path: Path) -> None:
    out = tmp_path / "runs"
    with subprocess.Popen(
        [sys.executable, "-c", HEARS + PROGRAM, "compare", *words, "rounds=2000",
         "--only=fedllm,kd", "--workers=2", f"--out={out}"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:  # fmt: skip
        try:
            deadline = time.monotonic() + 120
            while len([*out.glob("*/*/metrics.jsonl")]) < 2:
                assert process.poll() is None, "it ended before it could be interrupted"
                assert time.monotonic() < deadline
                time.sleep(0.05)
            os.killpg(process.pid, signal.SIGINT)
            assert process.wait(60) == 130
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        assert process.stderr is not None
        assert "trillium resume" in (said := process.stderr.read())
        assert "Traceback" not in said
    while alive(process.pid):  # what multiprocessing itself has started ends a little later
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for path in out.glob("*/*/status.json"):
        status = json.loads(path.read_text())
        assert (status["state"], status["error"]) == ("stopped", "it was interrupted")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "out of memory (CUDA out of memory)"),
        (MemoryError(), "out of memory (it says nothing more)"),
        (ZeroDivisionError("by zero\nmore"), "ZeroDivisionError: by zero (all of it"),
    ],
)
def test_whatever_ends_one_arm_does_not_end_the_others(
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    told: str,
    cli: Cli,
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(KD, "round", fail)
    command = ["compare", *words, "rounds=1", "--only=kd,fedllm", "--json", "--out", tmp_path]
    assert cli(*command) == 1
    out, said = capsys.readouterr()
    assert f"kd, seed 0, failed: {told}" in said
    assert "Traceback" not in said
    found = json.loads(out)
    arms = {arm["arm"]: arm for arm in found["arms"]}
    assert arms["fedllm"]["state"] == "finished"
    assert arms["kd"]["state"] == "failed"
    assert type(error).__name__ in arms["kd"]["failed"]["0"]
    folder = Path(found["folder"])
    for name in ("table.md", "table.csv", "report.html"):
        assert type(error).__name__ in (folder / name).read_text(encoding="utf-8")
    assert "test_cli_compare" in (folder / "kd_s0" / "traceback.txt").read_text()


def test_nor_does_it_in_a_process_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("by zero")

    class Pipe:
        """Brings one run, and takes what comes of it."""

        def __init__(self) -> None:
            self.jobs: list[object] = [(("kd", 0), experiment({}).tree(), tmp_path, [])]
            self.ends: list[object] = []

        def recv(self) -> object:
            if not self.jobs:
                raise EOFError
            return self.jobs.pop()

        def send(self, message: tuple[object, object, object]) -> None:
            self.ends.append(message[2])

    monkeypatch.setattr(workers, "run_arm", fail)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    pipe, threads = Pipe(), torch.get_num_threads()
    workers.work(pipe, in_process)  # type: ignore[arg-type]
    torch.set_num_threads(threads)
    [end] = pipe.ends
    assert str(end).startswith("ZeroDivisionError: by zero")
