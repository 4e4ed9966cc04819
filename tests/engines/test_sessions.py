"""A deployment equals the local engine, and goes on: the same bytes, weights and figures.

The nodes are threads of this process; `test_flower.py` has real ones.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="Flower is not installed (extra: deploy)")

from deployed import assert_equal, lines_of, run_in_threads
from resumed import Killed, dying_at
from tiny import experiment_config
from trillium import resume
from trillium.errors import UserError
from trillium.experiment.folder import RunFolder
from trillium.experiment.run import build
from trillium.federation.parts import HEAD_BYTES
from variants import VARIANTS, Variant, cases

# What both sides must keep in step, a teacher, and batches: in turns, at once and ahead.
FAST = (
    *("fedllm everything coded", "kd top classes", "split v2", "split ahead"),
    *("split u, measured by clients", "fedllm measured by clients"),
)
RESUMED = ("fedllm change, cohort", "kd cached, cohort", "split kept u, v2 of a cohort")


@pytest.mark.parametrize(
    "variant",
    # What crosses is the engine's business, not a variant's: all of them take five minutes of a core.
    cases(
        FAST,
        lambda v: v.framework != "centralised" and v.repeats and not v.is_timed,
        pytest.mark.drill,
    ),
)
def test_sessions_equal_the_local_engine(
    hub: Path, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: Variant
) -> None:
    config = experiment_config(hub, *variant.words, model=variant.model, task=variant.task)
    built = build(config, RunFolder(tmp_path / "local", "local"))
    built.run()
    run_in_threads(config, keys, RunFolder(tmp_path / "sessions", "sessions"), monkeypatch)
    assert_equal(tmp_path / "sessions", tmp_path / "local")
    # What is accepted of a reply follows from the run, and leaves room for all that come.
    crossed = [e for e in lines_of(tmp_path / "local" / "wire.jsonl") if e["direction"] == "up"]
    largest = max((max(e["bytes"], e["bytes_raw"]) for e in crossed), default=0)
    most = built.fleet.most.max_bytes
    assert HEAD_BYTES + largest <= most < HEAD_BYTES + 10**7


@pytest.mark.parametrize("variant", [VARIANTS[name] for name in RESUMED], ids=RESUMED)
def test_a_server_that_was_killed_goes_on_with_what_its_nodes_have_kept(
    hub: Path, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: Variant
) -> None:
    words = (*variant.words, "rounds=3")
    config = experiment_config(hub, *words, model=variant.model, task=variant.task)
    build(config, RunFolder(tmp_path / "local", "local")).run()

    path = tmp_path / "sessions"
    with pytest.raises(Killed):
        run_in_threads(config, keys, RunFolder(path, "sessions"), monkeypatch, dying_at(2))
    run_in_threads(config, keys, RunFolder.reopen(path), monkeypatch)
    assert_equal(path, tmp_path / "local")
    assert json.loads((path / "status.json").read_text())["resumed"] == 1


def test_a_node_keeps_the_model_that_it_has_fine_tuned(
    hub: Path, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uncounted: None
) -> None:
    """It is that of the simulation, and outlasts the run."""
    config = experiment_config(hub, *VARIANTS["fedllm finetuned"].words)
    local, path = tmp_path / "local", tmp_path / "sessions"
    build(config, RunFolder(local, "local")).run()
    built = run_in_threads(config, keys, RunFolder(path, "sessions"), monkeypatch)
    for name in built.fleet.engine.clients:
        kept = path / "nodes" / name / "models" / "run" / "adapter_model.safetensors"
        here = local / "clients" / name / "adapter" / "adapter_model.safetensors"
        assert kept.read_bytes() == here.read_bytes()
        assert not (path / "nodes" / name / "runs" / "run").exists()
    told = [json.loads((folder / "finetuned.json").read_text()) for folder in (path, local)]
    assert told[0] == told[1]


def test_a_deployed_folder_is_gone_on_with_by_a_deployment_alone(
    hub: Path, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uncounted: None
) -> None:
    config = experiment_config(hub)
    path, local = tmp_path / "deployed", tmp_path / "local"

    with pytest.raises(Killed):
        run_in_threads(
            config, keys, RunFolder(path, "fedllm", deployed=True), monkeypatch, dying_at(1)
        )
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    for _ in range(2):
        with pytest.raises(UserError, match="nodes on machines of their own"):
            resume(path, progress=False)
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before
    with pytest.raises(Killed):
        build(config, RunFolder(local, "fedllm")).run(dying_at(1))
    with pytest.raises(UserError, match="nodes would go on with other rows"):
        RunFolder.reopen(local, deployed=True)
    run_in_threads(config, keys, RunFolder.reopen(path, deployed=True), monkeypatch)
    assert json.loads((path / "status.json").read_text())["deployed"]
