"""Which public examples a round is about, who speaks of them, and which labels are used again."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from kd_help import T, distil, wanted_rows
from torch import Tensor

from tiny import (
    Recorder,
    distance,
    federation,
    perturb,
    plain_model,
    plain_steps,
    public_set,
    round_batches,
    run_round,
    run_rounds,
    trained,
)
from trillium.errors import UserError
from trillium.experiment.run import Experiment
from trillium.frameworks.kd.protocol import KD
from trillium.frameworks.kd.public import read_mask, write_mask
from trillium.models.slots import matches
from trillium.rng import generator
from trillium.wire.kinds import MessageError
from trillium.wire.message import Message, decode

pytestmark = pytest.mark.usefixtures("uncounted")

TOP = "wire.{}=[{{name: top_classes, k: 2}}]"


def kd(hub: Path, *words: str, **options: Any) -> Experiment:
    return federation(hub, "framework=kd", *words, **options)


def crossed(log: Recorder, verb: str, answers: bool) -> list[tuple[str, int, Message]]:
    """Client, round and content of what crossed for a verb, asks or answers."""
    found = []
    for client, ask, answer in log.log:
        message = decode(answer if answers else ask)
        if message.verb == verb:
            found.append((client, int(message.meta["round"]), message))
    return found


@pytest.mark.parametrize("count", [0, 1, 8, 12, 13])
def test_a_choice_crosses_as_bits(count: int) -> None:
    chosen = list(range(0, count, 3))
    mask = write_mask(chosen, count)
    assert mask.nbytes == math.ceil(count / 8)
    assert read_mask(Message("x", {"control/a": mask}), "control/a", count) == chosen
    assert read_mask(Message("x"), "control/a", count) == list(range(count))


@pytest.mark.parametrize(
    "mask",
    [
        torch.zeros(1).byte(),
        torch.zeros(2),
        torch.full((2,), 255).byte(),
        torch.zeros(2, 1).byte(),
    ],
)
def test_a_choice_of_something_else_is_refused(mask: Tensor) -> None:
    with pytest.raises(MessageError):
        read_mask(Message("x", {"control/a": mask}), "control/a", 12)


# A part of the public set


@pytest.mark.parametrize("task", ["classification", "causal_lm"])
def test_a_round_on_a_part_is_the_textbook_on_that_part(hub: Path, task: str) -> None:
    words = (
        "framework.direction=server",
        f"framework.temperature={T}",
        "framework.public_per_round=5",
    )
    fed = perturb(kd(hub, *words, "data.num_clients=1", "training.max_grad_norm=0.5", task=task))
    seed, client, server, parts = fed.config.seed, plain_model(fed), plain_model(fed), []
    run_rounds(fed, 2)
    everything = public_set(fed)
    for number in (1, 2):
        order = torch.randperm(12, generator=generator(seed, "public", number)).tolist()
        public = [everything[index] for index in sorted(order[:5])]
        parts.append(sorted(order[:5]))
        optimizer = torch.optim.AdamW(trained(client).values(), lr=0.01, weight_decay=0.0)
        plain_steps(client.train(), round_batches(fed, number), optimizer, 0.5)
        teacher = (wanted_rows(client, public).double() / T).softmax(-1).float()
        distil(server, public, teacher, generator(seed, "distil", "server", number), 8)
    assert parts[0] != parts[1]
    assert distance(fed.server.state, trained(server)) < 1e-6


def test_only_the_part_crosses(hub: Path) -> None:
    fed = kd(hub, "framework.public_per_round=5", TOP.format("up"), TOP.format("down"))
    log = Recorder(fed)
    run_rounds(fed, 2)
    for _, _, answer in crossed(log, "teach", answers=True):
        assert answer.tensors["logits/public"].nbytes == 5 * (2 * 2 + 1)
    for _, _, ask in crossed(log, "learn", answers=False):
        assert ask.tensors["logits/teacher"].nbytes == 5 * (2 * 2 + 1)
    entries = [e for e in fed.fleet.ledger.entries if e.verb == "teach" and e.direction == "up"]
    assert {e.kinds["logits"] for e in entries} == {25}
    plain = kd(hub, "framework.public_per_round=5")
    run_rounds(plain, 2)
    raw = [e for e in plain.fleet.ledger.entries if e.verb == "teach" and e.direction == "up"]
    assert {e.kinds["logits"] for e in raw} == {5 * 3 * 4}
    assert [e.bytes_raw for e in raw] == [e.bytes_raw for e in entries]


# Labels that are used again


@pytest.mark.parametrize(
    ("duration", "asked"), [(1, [12] * 5), (2, [12, 0, 12, 0, 12]), (4, [12, 0, 0, 0, 12])]
)
def test_a_label_serves_as_many_rounds_as_it_may(
    hub: Path, duration: int, asked: list[int]
) -> None:
    fed = kd(hub, f"framework.cache_rounds={duration}", "rounds=5")
    log = Recorder(fed)
    run_rounds(fed, 5)
    found: dict[int, set[int]] = {}
    for _, number, answer in crossed(log, "teach", answers=True):
        found.setdefault(number, set()).add(len(answer.tensors["logits/public"]))
    assert [found[number] for number in range(1, 6)] == [{count} for count in asked]
    for _, number, ask in crossed(log, "learn", answers=False):
        assert len(ask.tensors["logits/teacher"]) == asked[number - 1]


def test_a_label_that_is_used_again_is_the_one_that_was_made(hub: Path) -> None:
    fed = kd(hub, "framework.cache_rounds=3", TOP.format("down"))
    run_rounds(fed, 3)
    made = fed.server.store["labels"]["records"]
    assert fed.server.store["labels"]["made"] == dict.fromkeys(range(12), 1)
    for client in fed.clients:
        held = client.store["labels"]["records"]
        assert held.keys() == made.keys()
        assert all(torch.equal(held[index], made[index]) for index in made)


def test_parts_and_labels_go_together(hub: Path) -> None:
    """Each round asks about those of its part whose label is gone, and distils from all of it."""
    fed = kd(hub, "framework.cache_rounds=2", "framework.public_per_round=6", "rounds=6")
    log = Recorder(fed)
    run_rounds(fed, 6)
    made: dict[int, int] = {}
    for number in range(1, 7):
        order = torch.randperm(12, generator=generator(fed.config.seed, "public", number))
        part = sorted(order[:6].tolist())
        wanted = [index for index in part if index not in made or number - made[index] >= 2]
        made |= dict.fromkeys(wanted, number)
        [ask] = [m for c, n, m in crossed(log, "teach", False) if (c, n) == ("client-0", number)]
        assert read_mask(ask, "control/wanted", 12) == wanted
        [ask] = [m for c, n, m in crossed(log, "learn", False) if (c, n) == ("client-0", number)]
        assert read_mask(ask, "control/used", 12) == part
        assert len(ask.tensors["logits/teacher"]) == len(wanted)


def test_a_client_that_was_away_gets_what_it_missed(hub: Path) -> None:
    words = ("framework.cache_rounds=4", "data.num_clients=4", "fleet.clients_per_round=2")
    fed = kd(hub, *words, "rounds=4")
    log = Recorder(fed)
    run_rounds(fed, 4)
    seen: set[str] = set()
    for client, number, ask in crossed(log, "learn", answers=False):
        fresh = client not in seen
        assert len(ask.tensors["logits/teacher"]) == (12 if fresh else 0), (client, number)
        seen.add(client)
    assert len(seen) > 2


def test_a_client_refuses_labels_that_it_is_wrongly_said_to_hold(hub: Path) -> None:
    fed = kd(hub, "framework.cache_rounds=2", "fleet.min_replies=2")
    run_rounds(fed, 1)
    fed.clients[1].store["labels"]["made"].pop(3)
    run_round(fed, 2)
    assert fed.fleet.missing == {"client-1": "MessageError: the server relies on labels that this "
                                 "client does not hold"}  # fmt: skip
    # It has lost its place, and is brought in step in the next round.
    run_round(fed, 3)
    assert not fed.fleet.missing


def test_a_round_is_about_a_draw_of_its_own(hub: Path) -> None:
    fed = kd(hub, "framework.public_per_round=5")
    framework = fed.config.framework
    assert isinstance(framework, KD)
    for number in (1, 2):
        fed.server.round = number
        order = torch.randperm(12, generator=generator(fed.config.seed, "public", number))
        assert framework.chosen(fed.server) == sorted(order[:5].tolist())


# Settings


def test_every_ensemble_and_sharpening_runs(hub: Path) -> None:
    for ensemble in ("class_counts", "confidence", "variance", "lowest_loss", "vote", "noisy_mean"):
        fed = kd(hub, f"framework.ensemble={ensemble}", "framework.public_labels=true", "rounds=1")
        [_, line] = fed.run()
        assert math.isfinite(line["distil_loss"])


def test_era_warns_where_it_flattens(hub: Path, caplog: pytest.LogCaptureFixture) -> None:
    for words, warned in (
        (("era",), False),
        (("{name: era, temperature: 1}",), True),
        (("power",), False),
    ):
        caplog.clear()
        run_rounds(kd(hub, f"framework.sharpening={words[0]}"), 1)
        assert ("write power instead" in caplog.text) == warned


def test_what_is_frozen_stays_frozen_in_distillation(hub: Path) -> None:
    fed = perturb(kd(hub, "training.lr_factors={head: 0}"))
    before = {name: tensor.clone() for name, tensor in fed.model.initial.items()}
    run_rounds(fed, 1)
    for state in (fed.server.state, fed.clients[0].store["tensors"]):
        moved = {name for name in before if not torch.equal(state[name].detach(), before[name])}
        assert moved == {name for name in before if not matches(name, ["head"])}


REFUSED = [
    ("framework.ensemble=lowest_loss", r"public_labels=false"),
    ("framework.public_per_round=13", r"public_per_round=13 with data\.public_size=12"),
    ("wire.up=[sampled_classes]", r"temperature=2"),
    ("tiers={far: {clients: [client-0], up: [sampled_classes]}}", r"tiers\.far\.up: sampled_classes"),
]  # fmt: skip


@pytest.mark.parametrize(("word", "match"), REFUSED)
def test_settings_that_contradict_each_other_are_refused(hub: Path, word: str, match: str) -> None:
    with pytest.raises(UserError, match=match):
        kd(hub, word)


def test_budgets_and_old_labels_are_refused(hub: Path) -> None:
    words = ("framework.cache_rounds=2", "wire.down=[{name: top_classes, max_bytes: 99}]")
    with pytest.raises(UserError, match="with a budget"):
        kd(hub, *words)
    kd(hub, words[0])
    kd(hub, words[1])


def test_what_needs_classes_is_refused_without(hub: Path) -> None:
    with pytest.raises(UserError, match="task=causal_lm"):
        kd(hub, "framework.ensemble=class_counts", task="causal_lm")
