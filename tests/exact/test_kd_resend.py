"""Labels that are not sent again: both sides hold the same, whatever is lost on the way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tiny import Recorder, distance, experiment_config, federation, run_rounds
from trillium.errors import UserError
from trillium.experiment.run import Experiment
from trillium.federation.fleet import Gathered, Lost
from trillium.wire.message import decode

VOTES = "wire.up=[votes]"


def kd(hub: Path, *words: str, **options: Any) -> Experiment:
    return federation(hub, "framework=kd", "training.optimizer.lr=0.1", *words, **options)


def uploads(log: Recorder) -> dict[tuple[str, int], int]:
    """How many labels each client has sent in each round."""
    answers = [(client, decode(answer)) for client, _, answer in log.log]
    return {
        (client, int(answer.meta["round"])): len(answer.tensors["logits/public"])
        for client, answer in answers
        if answer.verb == "teach"
    }


def run(fed: Experiment, rounds: int) -> Recorder:
    log = Recorder(fed)
    run_rounds(fed, rounds)
    return log


@pytest.mark.parametrize("task", ["classification", "causal_lm"])
def test_votes_that_stay_are_not_sent_and_nothing_else_changes(hub: Path, task: str) -> None:
    plain, frugal = kd(hub, VOTES, task=task), kd(hub, VOTES, "framework.resend=1e-6", task=task)
    full, few = uploads(run(plain, 4)), uploads(run(frugal, 4))
    assert distance(plain.server.state, frugal.server.state) == 0.0
    assert all(few[key] == full[key] for key in few if key[1] == 1)
    assert all(few[key] <= full[key] for key in few)
    later = [key for key in few if key[1] > 1]
    assert sum(few[key] for key in later) < sum(full[key] for key in later)


def test_what_has_hardly_moved_is_taken_as_it_was(hub: Path) -> None:
    fed = kd(hub, "framework.resend=1.0")
    sent = uploads(run(fed, 3))
    assert [sent["client-0", number] for number in (1, 2, 3)] == [12, 0, 0]
    held = fed.server.store["heard"]["client-0"]["records"]
    first = kd(hub, "framework.resend=1.0")
    run(first, 1)
    before = first.server.store["heard"]["client-0"]["records"]
    assert held.keys() == before.keys()
    assert all(torch.equal(held[index], before[index]) for index in held)


def test_an_example_is_sent_again_once_it_has_moved_far_from_what_was_sent(hub: Path) -> None:
    """Not from what it was a round ago: small steps add up."""
    least = 0.05
    fed = kd(hub, f"framework.resend={least}", "training.optimizer.lr=0.003")
    log = run(fed, 4)
    truth = kd(hub, "training.optimizer.lr=0.003", "framework.resend=1e-12")
    sent = uploads(log)
    assert 0 < sum(sent["client-1", number] for number in (2, 3, 4)) < 36
    run(truth, 1)
    one = truth.server.store["heard"]["client-1"]["records"]
    again = kd(hub, f"framework.resend={least}", "training.optimizer.lr=0.003")
    run(again, 1)
    same = again.server.store["heard"]["client-1"]["records"]
    assert all(torch.equal(one[index], same[index]) for index in one)
    # After every round the two sides hold the same.
    for client in fed.clients:
        own = {**client.store["sent"]["records"], **client.store["sent"]["latest"]}
        heard = fed.server.store["heard"][client.name]["records"]
        assert all(torch.equal(own[index], heard[index]) for index in heard)


class Losing:
    """An engine that loses one reply on the way, or in which a client forgets all."""

    def __init__(self, fed: Experiment, client: str, number: int, *, forgets: bool = False) -> None:
        self.inner, self.fed = fed.fleet.engine, fed
        self.client, self.number, self.forgets = client, number, forgets
        fed.fleet.engine = self

    @property
    def clients(self) -> list[str]:
        return list(self.inner.clients)

    def carry(self, requests: Mapping[str, bytes]) -> Iterator[tuple[str, bytes | Lost]]:
        for client, reply in self.inner.carry(requests):
            assert isinstance(reply, bytes)
            is_it = client == self.client and self.fed.fleet.round == self.number
            if is_it and not self.forgets and decode(reply).verb == "teach":
                yield client, Lost("the line broke")
            else:
                yield client, reply

    def gather(self, need: int) -> Gathered:
        found = {self.client} if self.forgets and self.fed.fleet.round == self.number else set()
        for client in self.fed.clients:
            if client.name in found:
                client.store.clear()
                client.scratch.clear()
        return Gathered(set(self.inner.clients), found)

    def save(self, number: int) -> None:
        self.inner.save(number)

    def restore(self, number: int) -> None:
        self.inner.restore(number)


@pytest.mark.parametrize("forgets", [False, True])
def test_sides_stay_in_step_when_a_reply_is_lost_or_a_client_forgets(
    hub: Path, forgets: bool
) -> None:
    def made(*words: str) -> Experiment:
        fed = kd(hub, "fleet.min_replies=2", VOTES, *words, "rounds=5")
        Losing(fed, "client-1", 2, forgets=forgets)
        run_rounds(fed, 5)
        return fed

    plain, frugal = made(), made("framework.resend=1e-6")
    assert distance(plain.server.state, frugal.server.state) == 0.0
    for one, other in zip(plain.clients, frugal.clients, strict=True):
        assert distance(one.store["tensors"], other.store["tensors"]) == 0.0


def test_what_was_never_sent_cannot_be_left_out(hub: Path) -> None:
    fed = kd(hub, "framework.resend=0.5", "fleet.min_replies=2", "rounds=2")
    run_rounds(fed, 1)
    fed.server.store["heard"]["client-2"]["records"].pop(4)
    fed.server.round = 2
    fed.fleet.begin_round(2)
    fed.config.framework.round(fed.server, fed.fleet)
    assert "of which it has never spoken" in fed.fleet.missing["client-2"]


def test_labels_of_different_lengths_are_refused(hub: Path) -> None:
    with pytest.raises(UserError, match=r"framework\.resend"):
        experiment_config(
            hub,
            "framework=kd",
            "framework.resend=0.1",
            "wire.up=[{name: top_classes, k: 3, max_bytes: 100}]",
        )
