"""`--engine`: where clients work, and what is said where they cannot."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cli_help import Cli

PROGRAM = "from trillium.cli.app import main; main()"


@pytest.fixture
def words(hub: Path) -> list[str]:
    return [
        f"--model={hub / 'gpt2'}",
        f"--data={hub / 'classification.jsonl'}",
        "framework=split",
        "model.random_weights=true",
        "model.device=cpu",
        "data.num_clients=2",
        "data.test_fraction=0.3",
        "adapter.target_modules=[c_attn]",
    ]


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ("rey", "Did you mean 'ray'?"),
        ("{name: ray, cpu: 2}", "Did you mean 'cpus'?"),
        ("{name: ray, cpus: 0}", "it must be at least 1"),
        ("{name: local, cpus: 2}", "there is no setting 'cpus' there"),
        ("[1", "the value is not YAML"),
    ],
)
def test_what_is_no_engine_is_refused_before_anything_is_made(
    tmp_path: Path, engine: str, said: str, cli: Cli
) -> None:
    for verb in ("run", "compare"):
        assert said in cli.refused(verb, "--engine", engine, "--out", tmp_path / verb)
    assert not [*tmp_path.iterdir()]


def test_ray_that_is_not_there_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: list[str], cli: Cli
) -> None:
    out = f"--out={tmp_path / 'runs'}"
    monkeypatch.setitem(sys.modules, "trillium.engines.actors.cluster", None)
    assert "Ray is not installed" in cli.refused("run", *words, "--engine=ray", out)
    monkeypatch.delitem(sys.modules, "trillium.engines.actors.cluster")
    pytest.importorskip("ray", reason="Ray is not installed (extra: simulation)")
    engine = "--engine={name: ray, address: '127.0.0.1:1'}"
    assert "engine.address=127.0.0.1:1" in (said := cli.refused("compare", *words[:2], engine, out))
    assert "Traceback" not in said
    assert not [*(tmp_path / "runs").iterdir()]


def test_without_it_nothing_of_ray_is_imported(words: list[str], tmp_path: Path) -> None:
    said = "print('ray' in sys.modules)"
    program = f"import sys\ntry:\n    {PROGRAM}\nexcept SystemExit:\n    pass\n{said}"
    done = subprocess.run(
        [sys.executable, "-c", program, "run", *words, "rounds=1", f"--out={tmp_path}", "-q"],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "False", done.stderr
    assert [*tmp_path.glob("*/adapter/adapter_model.safetensors")]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of Unix")
def test_a_run_with_ray_is_stopped_and_goes_on(words: list[str], tmp_path: Path) -> None:
    """It ends its processes, says nothing of Ray, and ends as a local one would have."""
    pytest.importorskip("ray", reason="Ray is not installed (extra: simulation)")
    import psutil  # type: ignore[import-untyped]

    env, made = {**os.environ, "OMP_NUM_THREADS": "1"}, tmp_path / "ray"
    base = [sys.executable, "-c", PROGRAM]
    engine = ["--engine=ray", "--workers=2"]
    with subprocess.Popen(
        [*base, "run", *words, "rounds=40", *engine, f"--out={made}"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env,
    ) as process:  # fmt: skip
        deadline = time.monotonic() + 240
        while not any(len(p.read_text().splitlines()) > 1 for p in made.glob("*/metrics.jsonl")):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        started = psutil.Process(process.pid).children(recursive=True)
        assert len(started) > 2
        process.send_signal(signal.SIGTERM)
        said, told = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    [folder] = made.iterdir()
    assert f"Go on with: trillium resume {folder}" in told
    lines = [line.replace(str(made), "") for line in (said + told).splitlines()]
    assert not [line for line in lines if "ray" in line.lower() and "trillium.engines" not in line]
    assert psutil.wait_procs(started, 30)[1] == []
    whole = tmp_path / "local"
    subprocess.run([*base, "run", *words, "rounds=40", f"--out={whole}", "-q"], env=env, check=True)
    subprocess.run([*base, "resume", folder, *engine, "-q"], env=env, check=True)
    [local] = whole.iterdir()
    name = "adapter/adapter_model.safetensors"
    assert (folder / name).read_bytes() == (local / name).read_bytes()
    assert json.loads((folder / "status.json").read_text())["resumed"] == 1
