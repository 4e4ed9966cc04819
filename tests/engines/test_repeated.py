"""All links are lost for a moment: the round is repeated, and the run ends as it would have."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="Flower is not installed (extra: deploy)")

from session_help import Proxy

from deployed import lines_of, metrics, run_in_threads
from tiny import experiment_config
from trillium.engines.session import Handler
from trillium.experiment.folder import RunFolder
from trillium.experiment.run import build
from trillium.federation.failed import RoundFailed
from trillium.wire.message import decode

# Each with something that a client holds from one round to the next, and dropout.
STATEFUL = {
    "fedllm": ("framework.download=change", "wire={up: [sign], down: [int4]}"),
    "kd": ("framework=kd", "framework.direction=client"),
    "split": ("framework=split", "framework.mode=relay"),
}
ROUND, AWAY_SECONDS = 2, 0.5


class Switch:
    """A link of all nodes that is cut once, for a moment, when the second ask of a round arrives."""

    def __init__(self) -> None:
        self.link: Proxy | None = None
        self.cuts, self._asks = 0, 0
        self._lock = threading.Lock()

    def through(self, port: int) -> int:
        self.link = Proxy(port)
        return self.link.port

    def spoil(self, data: bytes, handler: Handler) -> bytes:
        reply = handler(data)
        with self._lock:
            self._asks += not self.cuts and decode(data).meta["round"] == ROUND
            cut = self._asks == 2 and not self.cuts
            self.cuts += cut
        if cut:
            assert self.link is not None
            self.link.cut()
            threading.Timer(AWAY_SECONDS, self.link.restore).start()
        return reply


@pytest.fixture
def switch() -> Iterator[Switch]:
    found = Switch()
    yield found
    if found.link is not None:
        found.link.close()


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(words, id=name, marks=() if name == "fedllm" else pytest.mark.slow)
        for name, words in STATEFUL.items()
    ],
)
def test_links_that_are_lost_for_a_moment_change_nothing(
    hub: Path,
    keys: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    uncounted: None,
    switch: Switch,
    words: tuple[str, ...],
) -> None:
    config = experiment_config(hub, *words, "rounds=3")
    build(config, RunFolder(tmp_path / "local", "local")).run()
    folder = RunFolder(tmp_path / "sessions", "sessions")
    run_in_threads(
        config,
        keys,
        folder,
        monkeypatch,
        spoil=switch.spoil,
        through=switch.through,
        repeats=1,
    )
    assert switch.cuts == 1
    status = json.loads((folder.path / "status.json").read_text())
    assert status["failed_rounds"] == {str(ROUND): 1}
    # Models of their own lie with the nodes.
    trained = [
        path / "adapter" / "adapter_model.safetensors" for path in (folder.path, tmp_path / "local")
    ]
    assert len({path.read_bytes() if path.exists() else None for path in trained}) == 1
    for mine, yours in zip(metrics(folder.path), metrics(tmp_path / "local"), strict=True):
        assert mine["missing"] == yours["missing"] == {}
        for name in ("accuracy", "loss", "train_loss"):
            assert mine.get(name) == yours.get(name), name
    # What crossed in vain has crossed.
    rounds = [
        [line for line in lines_of(path / "wire.jsonl") if line["round"] == ROUND]
        for path in (folder.path, tmp_path / "local")
    ]
    assert len(rounds[0]) > len(rounds[1])


def test_without_repeats_the_run_stops(
    hub: Path,
    keys: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    uncounted: None,
    switch: Switch,
) -> None:
    config, folder = experiment_config(hub, "rounds=3"), RunFolder(tmp_path / "run", "run")
    with pytest.raises(RoundFailed, match=f"round {ROUND}"):
        run_in_threads(
            config, keys, folder, monkeypatch, spoil=switch.spoil, through=switch.through
        )
