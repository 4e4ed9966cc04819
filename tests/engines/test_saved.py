"""What a node holds after a round is kept, or the run says that it is not.

A node is killed, cannot write, or loses its link while it is to keep its state; its files are changed
while the server is away. The run ends as if nothing had happened, or stops, or tells who is missing.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="Flower is not installed (extra: deploy)")

from deployed import Fault, assert_equal, lines_of, metrics, run_in_threads
from resumed import Killed, dying_at
from tiny import experiment_config
from trillium.config.experiment import ExperimentConfig
from trillium.engines.session import Handler
from trillium.errors import UserError
from trillium.experiment.folder import RunFolder
from trillium.experiment.run import build
from trillium.federation.failed import RoundFailed
from trillium.federation.side import Metrics

# Each with something that a client holds from one round to the next.
STATEFUL = {
    "fedllm": ("framework.download=change", "wire={up: [sign], down: [int4]}"),
    "kd": ("framework=kd", "framework.direction=client"),
    "split": ("framework=split", "framework.mode=relay"),
}
FAST = ("fedllm",)
ROUND = 2
LAX = "fleet.min_replies=2"


def cases() -> list[object]:
    return [
        pytest.param(words, id=name, marks=() if name in FAST else pytest.mark.slow)
        for name, words in STATEFUL.items()
    ]


def at_save(act: Callable[[bytes, Handler], bytes], number: int = ROUND) -> Fault:
    """Do something else once, when the first node is to keep its state of a round."""
    lock, left = threading.Lock(), {number}

    def fault(data: bytes, handler: Handler) -> bytes:
        with lock:
            first = json.loads(data) == ["save", number] and number in left
            left.difference_update([number] if first else [])
        return act(data, handler) if first else handler(data)

    return fault


def before(data: bytes, handler: Handler) -> bytes:
    raise Killed


def after(data: bytes, handler: Handler) -> bytes:
    handler(data)
    raise Killed


def full(data: bytes, handler: Handler) -> bytes:
    raise OSError(28, "No space left on device", "/a/path/of/the/node")


def config_of(hub: Path, *words: str) -> ExperimentConfig:
    return experiment_config(hub, *words, "rounds=3")


@pytest.mark.parametrize("words", cases())
def test_a_node_that_loses_its_state_of_a_round_stops_the_run_which_goes_on_equal(
    hub: Path,
    keys: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    uncounted: None,
    words: tuple[str, ...],
) -> None:
    config, path = config_of(hub, *words), tmp_path / "sessions"
    build(config, RunFolder(tmp_path / "local", "local")).run()
    for act in (before, full):
        folder = RunFolder(path, "sessions")
        with pytest.raises(RoundFailed, match=r"min_replies is 3 \(client-\d: "):
            run_in_threads(config, keys, folder, monkeypatch, fault=at_save(act))
        assert [line["round"] for line in metrics(path)] == [0, 1]
        assert "/a/path" not in (path / "status.json").read_text()
        run_in_threads(config, keys, RunFolder.reopen(path), monkeypatch)
        assert_equal(path, tmp_path / "local")
        shutil.rmtree(path)


@pytest.mark.parametrize("words", cases())
def test_a_node_that_kept_its_state_and_could_not_say_so_is_asked_again(
    hub: Path,
    keys: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    uncounted: None,
    words: tuple[str, ...],
) -> None:
    config = config_of(hub, *words)
    build(config, RunFolder(tmp_path / "local", "local")).run()
    folder = RunFolder(tmp_path / "sessions", "sessions")
    run_in_threads(config, keys, folder, monkeypatch, fault=at_save(after))
    assert_equal(tmp_path / "sessions", tmp_path / "local")


def test_where_others_are_left_it_is_missing_from_the_round(
    hub: Path, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uncounted: None
) -> None:
    config = config_of(hub, *STATEFUL["fedllm"], LAX, "evaluation.every=3")
    path = tmp_path / "sessions"
    folder = RunFolder(path, "sessions")
    run_in_threads(config, keys, folder, monkeypatch, fault=at_save(before))
    missing = {line["round"]: line["missing"] for line in metrics(path)}
    assert len(missing[ROUND]) == 1  # there is a line of it, though none was due
    assert json.loads((path / "status.json").read_text())["state"] == "finished"


def test_a_round_that_is_left_out_leaves_no_state_behind(
    hub: Path, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uncounted: None
) -> None:
    """The others had kept theirs of it; when the server has been killed, they go on without."""
    words = (*STATEFUL["fedllm"], "fleet.on_failure=skip")
    config, path = experiment_config(hub, *words, "rounds=4"), tmp_path / "sessions"
    kept: list[int] = []

    def dying(line: Metrics) -> None:
        files = (path / "nodes").glob("*/runs/run/client-*.pt")
        kept.extend(int(file.stem.rpartition("@")[2]) for file in files)
        if line["round"] == ROUND:
            assert line["skipped"]
            raise Killed

    folder = RunFolder(path, "sessions")
    with pytest.raises(Killed):
        run_in_threads(config, keys, folder, monkeypatch, dying, at_save(before))
    assert ROUND not in kept
    run_in_threads(config, keys, RunFolder.reopen(path), monkeypatch)
    rounds = [line["round"] for line in metrics(path)]
    assert rounds == list(range(5))


@pytest.mark.parametrize("lax", [False, True])
def test_a_node_whose_files_are_older_does_not_go_on_silently(
    hub: Path,
    keys: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    uncounted: None,
    lax: bool,
) -> None:
    config = config_of(hub, *STATEFUL["fedllm"], *[LAX] * lax)
    path = tmp_path / "sessions"

    with pytest.raises(Killed):
        run_in_threads(config, keys, RunFolder(path, "sessions"), monkeypatch, dying_at(3))
    nodes = path / "nodes" / "client-1" / "runs" / "run"
    (nodes / f"client-1@{ROUND}.pt").rename(nodes / "client-1@1.pt")  # a backup was put back, say
    if not lax:
        with pytest.raises(RoundFailed, match="client-1: it came back with its state of round 1"):
            run_in_threads(config, keys, RunFolder.reopen(path), monkeypatch)
        return
    run_in_threads(config, keys, RunFolder.reopen(path), monkeypatch)
    assert [*lines_of(path / "metrics.jsonl")[-1]["missing"]] == ["client-1"]


def test_a_simulation_does_not_go_on_without_the_state_of_a_client(
    hub: Path, tmp_path: Path, uncounted: None
) -> None:
    config, path = config_of(hub, *STATEFUL["fedllm"]), tmp_path / "local"

    with pytest.raises(Killed):
        build(config, RunFolder(path, "local")).run(dying_at(3))
    (path / "checkpoints" / f"client-1@{ROUND}.pt").unlink()
    with pytest.raises(UserError, match=r"client-1@2.pt: this checkpoint of a client is gone"):
        build(config, RunFolder.reopen(path))
