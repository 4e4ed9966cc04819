"""Private runs over sessions: nodes send a closed list, and say nothing of how much they have."""

from __future__ import annotations

from pathlib import Path

import pytest

from deployed import run_in_threads
from tiny import experiment_config
from trillium.errors import UserError
from trillium.experiment.folder import RunFolder
from trillium.experiment.spent import together
from trillium.federation.engine import CountingEngine
from trillium.privacy.account import FILE, read_account
from trillium.wire.ledger import Entry, Ledger

pytest.importorskip("dp_accounting")

COMMON = ("framework.weights=equal", "training.max_length=24", "training.local_steps=1")


@pytest.mark.parametrize(
    "privacy",
    [
        "privacy={name: client, noise: 0.7, population: 3}",
        "privacy={name: example, noise: 0.7, population: 12}",
    ],
)
def test_a_private_run_over_sessions_states_what_it_covers(
    hub: Path,
    keys: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    privacy: str,
) -> None:
    entries: list[Entry] = []
    add = Ledger.add

    def noted(self: Ledger, entry: Entry) -> None:
        entries.append(entry)
        add(self, entry)

    monkeypatch.setattr(Ledger, "add", noted)
    config = experiment_config(hub, *COMMON, privacy)
    folder = RunFolder(tmp_path / "run", "run")
    run = run_in_threads(config, keys, folder, monkeypatch)
    last = run.history[-1]
    assert [line["round"] for line in read_account(tmp_path / "run" / FILE)] == [1, 2]
    assert last["epsilon"] > 0
    found = together([tmp_path / "run"])
    assert found["epsilon"] == last["epsilon"]
    assert isinstance(run.fleet.engine, CountingEngine)
    assert not any(run.fleet.engine.counts.values())
    replies = [e for e in entries if e.direction == "up" and e.verb == "train"]
    assert len(replies) == 6
    assert len({e.bytes for e in replies}) == 1
    assert {(e.flops, e.seconds, e.peak_bytes) for e in replies} == {(None, None, None)}


def test_a_deployment_says_how_many_clients_there_are(
    hub: Path, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = experiment_config(hub, *COMMON, "privacy={name: client, noise: 0.7}")
    with pytest.raises(UserError, match="a number that stays"):
        run_in_threads(config, keys, RunFolder(tmp_path / "run", "run"), monkeypatch)
