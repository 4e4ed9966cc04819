"""What every framework promises: finite figures, bytes on the books, same seed same run, survival."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import pytest

from tiny import Recorder, digest, distance, federation, tensors_digest
from trillium.component import known
from trillium.experiment.run import Experiment
from trillium.federation.client import Client
from trillium.federation.fleet import RoundFailed
from trillium.frameworks import Framework
from trillium.wire.message import Message

FRAMEWORKS = cast(dict[str, type[Framework]], known(Framework))
MODES = ("relay", "splitfed_v1", "splitfed_v2", "coalesced")
VARIANTS: dict[str, tuple[str, ...]] = {name: (f"framework={name}",) for name in FRAMEWORKS}
VARIANTS |= {f"split {m}": ("framework=split", f"framework.mode={m}") for m in MODES[:3]}
VARIANTS["split u"] = ("framework=split", "framework.shape=u")
VARIANTS["split cached"] = ("framework=split", "framework.train=server", "framework.cache=true")
VARIANTS["split kept u"] = (*VARIANTS["split cached"], "framework.shape=u")
VARIANTS["split kept v1"] = (*VARIANTS["split cached"], "framework.mode=splitfed_v1")
VARIANTS["split local first"] = (*VARIANTS["split cached"], "framework.local_rounds=1")
VARIANTS["fedllm gradient"] = ("framework=fedllm", "framework.upload=gradient")
VARIANTS["fedllm ridge"] = ("framework=fedllm", "head=ridge")
VARIANTS["local_only class_means"] = ("framework=local_only", "head=class_means")
VARIANTS["kd cached"] = (
    "framework=kd", "framework.cache_rounds=2", "framework.public_per_round=7",
    "framework.ensemble=confidence", "framework.sharpening=power",
    "wire.up=[{name: top_classes, k: 2}]", "wire.down=[{name: top_classes, k: 2}]",
)  # fmt: skip
VARIANTS["kd client"] = ("framework=kd", "framework.direction=client")
CACHED = ("split cached", "split kept u", "split kept v1", "split local first")
ASKS = [name for name in VARIANTS if name not in ("zero_shot", "centralised")]
STAY = ("zero_shot", "local_only", "local_only class_means", "kd client")  # the server's own model
DROPOUT = ("model.dropout=0.2", "adapter.dropout=0.2")
each = pytest.mark.parametrize("variant", VARIANTS)


def rounds(variant: str) -> str:
    """As few rounds as there can be."""
    return "rounds=2" if variant == "split local first" else "rounds=1"


def numbers(value: object) -> Iterator[float]:
    if isinstance(value, Mapping):
        for item in value.values():
            yield from numbers(item)
    elif isinstance(value, int | float):
        yield float(value)


def without_seconds(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


@pytest.mark.parametrize(
    ("variant", "task"),
    [(variant, "classification") for variant in VARIANTS]
    + [
        (variant, "causal_lm")
        for variant in ("fedllm", "kd", "kd cached", "split", "local_only", "centralised")
    ],
)
def test_two_rounds_give_finite_figures_and_a_ledger(hub: Path, variant: str, task: str) -> None:
    fed = federation(hub, *VARIANTS[variant], task=task)
    history = fed.run()
    rounds = [line["round"] for line in history]
    assert rounds == ([0, 1, 2] if fed.config.framework.trains else [0])
    for line in history:
        assert json.loads(json.dumps(line)) == line
        assert all(math.isfinite(number) for number in numbers(line))
        assert {"loss", "shipped", "asked", "replied", "missing", "seconds"} <= line.keys()
    crossed = fed.fleet.ledger.bytes_total("up"), fed.fleet.ledger.bytes_total("down")
    assert (min(crossed) > 0) == (variant in ASKS)
    moved = distance(fed.server.state, fed.server.initial) > 0
    assert moved == (variant not in STAY)


@each
def test_the_same_seed_gives_the_same_run(hub: Path, variant: str) -> None:
    """Twice in one process, with dropout, and with other random numbers drawn in between."""
    runs = []
    for _ in range(2):
        noise = () if variant in CACHED else DROPOUT  # which must not be random
        fed = federation(hub, *VARIANTS[variant], *noise, rounds(variant))
        log = Recorder(fed)
        history = without_seconds(fed.run())
        replies = [digest(reply) for _, _, reply in log.log]
        runs.append((history, replies, tensors_digest(dict(fed.server.state))))
    assert runs[0] == runs[1]


@pytest.mark.parametrize("variant", ["fedllm", "zero_shot", "centralised"])
def test_another_seed_gives_another_run(hub: Path, variant: str) -> None:
    runs = [federation(hub, *VARIANTS[variant], f"seed={seed}", "rounds=1") for seed in (0, 1)]
    first, second = (without_seconds(fed.run()) for fed in runs)
    assert first != second


@pytest.mark.parametrize("variant", ASKS)
def test_a_sample_of_the_clients_is_asked(hub: Path, variant: str) -> None:
    fed = federation(hub, *VARIANTS[variant], "data.num_clients=4", "fleet.clients_per_round=2")
    history = fed.run()
    entries = [e for e in fed.fleet.ledger.entries if e.purpose == "train"]
    for number in (1, 2):
        assert len({e.client for e in entries if e.round == number}) == 2
    assert [line["asked"] for line in history[1:]] == [2, 2]


def failing(fed: Experiment, at: int) -> Client:
    """Make the middle client fail at one of its asks in each round."""
    client = fed.clients[1]
    asked = {"round": 0, "count": 0}

    def wrap(verb: Any) -> Any:
        def wrapped(me: Client, message: Message) -> Message:
            if asked["round"] != me.round:
                asked.update(round=me.round, count=0)
            asked["count"] += 1
            if me.round and asked["count"] == at:
                raise RuntimeError("the disk is full")
            reply: Message = verb(me, message)
            return reply

        return wrapped

    client.verbs = {name: wrap(verb) for name, verb in client.verbs.items()}
    return client


FAILURES = [(variant, 1) for variant in ASKS]
# The second ask of a round is the teacher; in a split, the fourth is the last of a batch.
FAILURES += [
    ("kd", 2),
    ("kd cached", 2),
    ("split relay", 2),
    ("split relay", 3),
    ("split", 3),
    ("split u", 3),
]
FAILURES += [("split cached", 2), ("split kept v1", 2)]
# The listing, the upload, the part of the client; then batches.
FAILURES += [("split kept u", at) for at in (2, 3, 4)]
FAILURES += [("split u", 4), ("split splitfed_v1", 4), ("split splitfed_v2", 2)]


@pytest.mark.parametrize(("variant", "at"), FAILURES)
def test_a_client_that_fails_is_done_without(hub: Path, variant: str, at: int) -> None:
    fed = federation(hub, *VARIANTS[variant], "fleet.min_replies=2", rounds(variant))
    client = failing(fed, at)
    history = fed.run()
    for line in history[1:]:
        assert line["missing"] == {client.name: "RuntimeError: the disk is full"}
        assert (line["asked"], line["replied"]) == (3, 2)
        assert all(math.isfinite(number) for number in numbers(line))
    if variant not in STAY:
        assert distance(fed.server.state, fed.server.initial) > 0


@pytest.mark.parametrize("variant", ASKS)
def test_without_leave_to_fail_the_run_ends_and_says_why(hub: Path, variant: str) -> None:
    fed = federation(hub, *VARIANTS[variant])
    failing(fed, 1)
    with pytest.raises(RoundFailed, match=r"round 1: 2 of 3 .*client-1: .*the disk is full"):
        fed.run()


@pytest.mark.parametrize("variant", ASKS)
def test_clients_answer_anything_with_a_message(hub: Path, variant: str) -> None:
    fed = federation(hub, *VARIANTS[variant])
    client, wire = fed.clients[0], fed.config.wire
    asks = [b"", b"TRM", b"\x00" * 100]
    asks += [
        wire.pack(Message(verb, meta=meta), "down").data
        for verb in (*client.verbs, "no_such_verb")
        for meta in ({}, {"round": 1}, {"round": -1}, {"round": True}, {"round": "one"})
    ]
    for ask in asks:
        reply = wire.unpack(client.handle(ask), "up").message
        assert reply.verb in {*client.verbs, "error"}
        assert "control/cost" in reply.tensors
    assert wire.unpack(client.handle(b"TRM"), "up").message.verb == "error"


@pytest.mark.parametrize("variant", ASKS)
def test_replies_that_are_not_what_was_asked_are_refused(hub: Path, variant: str) -> None:
    """The server survives a client that answers with an empty message of the right verb."""
    fed = federation(hub, *VARIANTS[variant], "fleet.min_replies=2", rounds(variant))
    client = fed.clients[2]

    def empty(me: Client, message: Message) -> Message:
        return Message(message.verb)

    client.verbs = {
        name: verb if name in ("receive_public", "evaluate_own", "learn") else empty
        for name, verb in client.verbs.items()
    }
    history = fed.run()
    for line in history[1:]:
        assert line["missing"].keys() == {client.name}
