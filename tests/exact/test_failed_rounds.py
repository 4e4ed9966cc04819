"""A round in which too few reply: it is skipped as if it had not been, or repeated with other luck."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Set
from pathlib import Path

import pytest
import torch

from resumed import assert_resumes, same, trained
from tiny import experiment_config
from trillium.config.experiment import ExperimentConfig
from trillium.experiment.folder import RunFolder
from trillium.experiment.run import Experiment, build
from trillium.federation.engine import Gathered, Saved
from trillium.federation.failed import RoundFailed
from trillium.federation.parts import Lost
from trillium.report.read import read_run
from trillium.report.summary import remarks, summarise

pytestmark = pytest.mark.usefixtures("uncounted")

FAST = ("training.local_steps=1", "training.batch_size=8", "rounds=3", "model.dtype=float32")
SKIP = "fleet.on_failure=skip"
CASES = {
    "fedllm": (),
    "fedllm, changes": ("framework.download=change",),
    "fedllm, local": ("framework.local=[head]",),
    "fedllm, folds": ("framework.aggregator=fedex",),
    "fedllm, adam": ("framework.server_optimizer={name: adam, lr: 0.1}",),
    "scaffold": ("framework.drift=scaffold",),
    "kd": ("framework=kd", "framework.cache_rounds=2"),
    "split": ("framework=split",),
    "split, cached": ("framework={name: split, train: server}",),
    "fedkseed": ("framework=fedkseed",),
}


class Failing:
    """An engine that loses the last client of some rounds, after all others have answered."""

    def __init__(self, fed: Experiment, rounds: Set[int], away: str = "") -> None:
        self.inner, self.fed, self.rounds, self.away = fed.fleet.engine, fed, {*rounds}, away
        fed.fleet.engine = self

    @property
    def clients(self) -> list[str]:
        return list(self.inner.clients)

    def carry(self, requests: Mapping[str, bytes]) -> Iterator[tuple[str, bytes | Lost]]:
        last = max(self.clients)
        fails = self.fed.server.round in self.rounds
        for client, reply in self.inner.carry(requests):
            if fails and client == last:
                self.rounds.discard(self.fed.server.round)  # when the round is over, it is back
                yield client, Lost("gone")
            else:
                yield client, reply

    def gather(self, need: int) -> Gathered:
        return self.inner.gather(need)

    def save(self, number: int) -> Saved | None:
        return self.inner.save(number)

    def restore(self, number: int, held: Mapping[str, int]) -> Set[str]:
        found = self.inner.restore(number, held) or frozenset()
        return {name for name in found if name != self.away}


def config_of(hub: Path, *words: str) -> ExperimentConfig:
    return experiment_config(hub, *FAST, "data.num_clients=3", *words, model="bert")


def run(config: ExperimentConfig, folder: Path, rounds: Set[int], away: str = "") -> Experiment:
    fed = build(config, RunFolder(folder, "run"))
    Failing(fed, rounds, away)
    fed.run()
    return fed


@pytest.mark.parametrize("case", CASES)
def test_a_skipped_round_leaves_nothing(hub: Path, tmp_path: Path, case: str) -> None:
    """What all sides hold after it is what they held before; then it goes on."""
    config = config_of(hub, SKIP, *CASES[case])
    skips = build(config, RunFolder(tmp_path / "skips", "run"))
    Failing(skips, {2})
    skips.run()
    assert [line["round"] for line in skips.history] == [0, 1, 2, 3]
    assert skips.history[2]["skipped"]
    assert skips.history[2]["missing"] == {"client-2": "gone"}
    assert skips.history[2]["loss"] == pytest.approx(skips.history[1]["loss"], rel=1e-6)
    # A run whose second round never was: the same rounds 1 and 3.
    other = build(config, RunFolder(tmp_path / "other", "run"))
    framework = type(other.config.framework)
    play = framework.round

    def without(self, server, fleet):  # type: ignore[no-untyped-def]
        return {} if server.round == 2 else play(self, server, fleet)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(framework, "round", without)
        other.run()
    for name, tensor in trained(other).items():
        assert torch.equal(tensor, trained(skips)[name]), name
    assert same(other.server.store, skips.server.store)
    for mine, yours in zip(skips.clients, other.clients, strict=True):
        assert same(mine.store, yours.store), mine.name
    [row] = summarise([read_run(tmp_path / "skips")])
    assert "skipped, as too few clients replied: round 2." in " ".join(remarks([row]))


def test_what_crossed_in_a_skipped_round_is_in_the_ledger(hub: Path, tmp_path: Path) -> None:
    run(config_of(hub, SKIP), tmp_path / "run", {2})
    lines = (tmp_path / "run" / "wire.jsonl").read_text().splitlines()
    assert any(json.loads(line)["round"] == 2 for line in lines)


@pytest.mark.parametrize("case", ["fedllm, changes", "fedllm, folds", "kd"])
def test_who_may_not_have_gone_back_is_brought_in_step_anew(
    hub: Path, tmp_path: Path, case: str
) -> None:
    """It is a newcomer the next time that it is asked, also after the run was stopped."""
    fed = run(config_of(hub, SKIP, *CASES[case]), tmp_path / "run", {2}, "client-1")
    assert "client-1" in fed.fleet.newcomers
    assert not fed.fleet.unsure
    assert fed.history[3]["missing"] == {}


def test_a_run_with_skipped_rounds_resumes_exactly(hub: Path, tmp_path: Path) -> None:
    luck = ("fleet={on_failure: skip, failure_rate: 0.5, min_replies: 2}", "rounds=4")
    config = config_of(hub, *luck, "framework.download=change")
    whole = build(config, RunFolder(tmp_path / "first", "run"))
    assert any(line.get("skipped") for line in whole.run()[1:])
    assert_resumes(config, tmp_path)


def test_a_resumed_run_draws_the_failures_of_a_round_anew(hub: Path, tmp_path: Path) -> None:
    """It would fail in the same round for ever; cohort, batches and other rounds stay as they are."""
    luck = "fleet={failure_rate: 0.6, min_replies: 2}"
    config = config_of(hub, luck, "rounds=4")
    fed = build(config, RunFolder(tmp_path / "run", "run"))
    with pytest.raises(RoundFailed):
        fed.run()
    stopped, tries = fed.server.round, 1
    while tries < 30:
        fed = build(config, RunFolder.reopen(tmp_path / "run"))
        try:
            fed.run()
            break
        except RoundFailed:
            tries += 1
    assert [line["round"] for line in fed.history] == [0, 1, 2, 3, 4]
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert sum(status["failed_rounds"].values()) == tries
    assert str(stopped) in status["failed_rounds"]
    # In a round that has not failed, the draw is what it was.
    calm = build(config)
    calm.fleet.round = fed.fleet.round = 99
    names = [client.name for client in fed.clients]
    assert [fed.fleet.fails(n) for n in names] == [calm.fleet.fails(n) for n in names]


def test_a_run_that_was_killed_draws_nothing_anew(hub: Path, tmp_path: Path) -> None:
    luck = "fleet={failure_rate: 0.3, min_replies: 1}"
    assert_resumes(config_of(hub, luck), tmp_path)
