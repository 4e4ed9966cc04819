"""Buffered asynchronous rounds: of all, they are synchronous; else FedBuff by hand. None is lost."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from resumed import same
from tiny import (
    distance,
    experiment_config,
    federation,
    perturb,
    plain_model,
    plain_steps,
    round_batches,
    run_rounds,
    tensors_digest,
    trained,
    without_seconds,
)
from trillium.errors import UserError
from trillium.federation.failed import RoundFailed
from trillium.models.slots import values
from trillium.wire.ledger import Entry
from variants import PLACES

FOUR = ("data.num_clients=4", *PLACES)
SGD = ("training.optimizer={name: sgd, lr: 0.1}", "training.max_grad_norm=null")
LOSSY = ("wire={up: [int8], down: [int8]}", "framework.server_optimizer={name: adam, lr: 0.1}")


def identity(entry: Entry) -> tuple[object, ...]:
    return (*(entry.round, entry.client, entry.direction, entry.verb, entry.bytes, entry.kinds),
            *(entry.flops, entry.at_seconds))  # fmt: skip


@pytest.mark.parametrize("words", [(), (*LOSSY, "fleet.clients_per_round=3")])
def test_a_buffer_of_all_is_a_synchronous_round(hub: Path, words: tuple[str, ...]) -> None:
    """Bit by bit: weights, what clients keep, measures, and the ledger with its times."""
    size = 3 if words else 4
    sync = federation(hub, *FOUR, *words, "rounds=3")
    found = federation(hub, *FOUR, *words, "rounds=3", f"framework.asynchronous.buffer={size}")
    lines = without_seconds(sync.run())
    told = without_seconds(found.run())
    assert [line.pop("staleness") for line in told[1:]] == [0.0] * 3
    for line in lines:
        line.pop("product_error", None)  # of the mean of one state's clients
    assert told == lines
    assert tensors_digest(values(found.server.state)) == tensors_digest(values(sync.server.state))
    for one, other in zip(found.clients, sync.clients, strict=True):
        assert same(one.store, other.store)
    entries = [[*map(identity, fed.fleet.ledger.entries)] for fed in (found, sync)]
    assert entries[0] == entries[1]


def test_a_clock_changes_nothing_but_the_order(hub: Path) -> None:
    with_clock, without = federation(hub, *FOUR), federation(hub, "data.num_clients=4")
    with_clock.run()
    without.run()
    assert tensors_digest(values(with_clock.server.state)) == tensors_digest(
        values(without.server.state)
    )


@pytest.mark.parametrize("damping", [0.5, 0.0, 1.0])
def test_it_is_fedbuff_by_hand(hub: Path, damping: float) -> None:
    """Each change is that of plain training from the state of the round in which it was asked for."""
    words = (*FOUR, *SGD, "data.partition={name: size_skewed, power: 1.0}")
    buffer = f"framework.asynchronous={{buffer: 2, damping: {damping}}}"
    fed = perturb(federation(hub, *words, buffer))
    states, names = [], [client.name for client in fed.clients]
    framework, stale = fed.config.framework, []
    framework.start(fed.server, fed.fleet)
    asked: dict[str, int] = {}
    for number in range(1, 7):
        states.append(values(fed.server.state))
        fed.server.round, before = number, len(fed.fleet.ledger.entries)
        fed.fleet.begin_round(number)
        framework.round(fed.server, fed.fleet)
        entries = fed.fleet.ledger.entries[before:]
        asked |= {e.client: e.round for e in entries if e.direction == "down"}
        came = {e.client: asked[e.client] for e in entries if e.direction == "up"}
        assert len(came) == 2
        total = {name: torch.zeros_like(t, dtype=torch.float64) for name, t in states[-1].items()}
        weights = 0.0
        for client, version in came.items():
            start, index = states[version - 1], names.index(client)
            plain = plain_model(fed)
            for name, parameter in trained(plain).items():
                parameter.data.copy_(start[name])
            optimizer = torch.optim.SGD(trained(plain).values(), lr=0.1)
            plain_steps(plain, round_batches(fed, version, index), optimizer)
            weight = fed.clients[index].weight
            factor = weight * (1 + number - version) ** -damping
            weights += weight
            stale.append(number - version)
            for name, parameter in trained(plain).items():
                total[name] += factor * (parameter.detach() - start[name])
        wanted = {name: states[-1][name] + total[name] / weights for name in total}
        assert distance(fed.server.state, wanted) < 1e-10
    assert max(stale) > 1


def test_every_answer_is_used_with_its_staleness_or_still_under_way(hub: Path) -> None:
    fed = federation(hub, *FOUR, "framework.asynchronous.buffer=2", "rounds=9")
    lines = fed.run()
    entries = fed.fleet.ledger.entries
    down = [entry.client for entry in entries if entry.direction == "down"]
    up = [entry.client for entry in entries if entry.direction == "up"]
    assert sorted(down) == sorted([*up, *fed.fleet.under_way])
    assert len(up) == 2 * 9
    assert "client-1" in up  # the slow one
    assert max(line["staleness"] for line in lines[1:]) > 1
    assert all(line["missing"] == {} for line in lines)
    times = [line["simulated_seconds"] for line in lines]
    assert times == sorted(times)


def test_the_order_of_arrivals_is_the_same_in_each_run(hub: Path) -> None:
    words = (*FOUR, "framework.asynchronous.buffer=2", "rounds=5")
    runs = [federation(hub, *words) for _ in range(2)]
    for fed in runs:
        fed.run()
    one, other = ([*map(identity, fed.fleet.ledger.entries)] for fed in runs)
    assert one == other


def test_who_has_no_time_left_is_missing_and_its_answer_is_booked(hub: Path) -> None:
    fed = federation(
        hub, *FOUR, "framework.asynchronous.buffer=2", "fleet.deadline_seconds=8", "rounds=9"
    )
    lines = fed.run()
    late = [line["missing"] for line in lines if line["missing"]]
    assert late[0] == {"client-1": "no reply within 8 s"}
    entries = [e for e in fed.fleet.ledger.entries if e.client == "client-1"]
    assert [e.direction for e in entries[:2]] == ["down", "up"]


def test_too_few_that_are_under_way_fail_the_round(hub: Path) -> None:
    fed = federation(
        hub, *FOUR, "framework.asynchronous.buffer=3", "fleet.deadline_seconds=3.18", "rounds=9"
    )
    with pytest.raises(RoundFailed, match="min_replies is 3"):
        run_rounds(fed, 2)


BUFFER = "framework.asynchronous.buffer=2"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["framework.upload=parameters"], "framework.upload=parameters"),
        (["framework.aggregator=svd"], "framework.aggregator=svd"),
        (["framework.drift=scaffold"], "framework.drift=scaffold"),
        (["framework.mask=rolora"], "framework.mask=rolora"),
        (["framework.download=change"], "framework.download=change"),
        (["framework.local=[head]"], "framework.local"),
        (["fleet.take=2"], "fleet.take=2"),
        (["fleet={clients_per_round: 2, over_sample: 1.5}"], "fleet.over_sample"),
        (["framework.asynchronous.buffer=4"], "buffer=4 of 3 clients"),
        (["fleet.min_replies=3"], "fleet.min_replies=3"),
        (["sums=masked", "framework.weights=equal"], "buffer=2 with sums=masked"),
        (
            [
                *("privacy={name: example, noise: 1, population: 14}", "training.max_length=64"),
                *("framework.weights=equal", "training.local_steps=2"),
            ],
            "buffer=2 with privacy=example",
        ),
    ],
)
def test_what_needs_one_state_is_refused(hub: Path, words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        experiment_config(hub, BUFFER, *words)
    assert "asynchronous" in caught.value.given
