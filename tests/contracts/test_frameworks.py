"""What every framework promises: finite figures, bytes on the books, same seed same run, survival."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from papers import on_paper
from tiny import Recorder, digest, distance, federation, tensors_digest, without_seconds
from trillium.experiment.run import Experiment
from trillium.federation.client import Client
from trillium.federation.failed import RoundFailed
from trillium.wire.message import Message
from variants import VARIANTS, Variant, cases

# One for each way of asking.
FAST = ("fedllm", "fedllm gradient", "fedllm scaffold", "fedkseed", "kd", "kd client",
        "kd cached, confident", "split", "split u", "split v1", "split v2", "split relay",
        "split cache", "split kept u", "split kept v1", "split local rounds",
        "local_only class means")  # fmt: skip
MORE = ("zero_shot", "local_only", "centralised", "fedllm head, ridge")
MODELS = ("fedllm llama, causal_lm", "kd gpt2, causal_lm", "split llama, causal_lm")
TWICE = {VARIANTS[name] for name in (*FAST, *MORE, *MODELS)}  # `test_resume.py` repeats the others
each = pytest.mark.parametrize(
    "variant", cases((*FAST, *MORE, *MODELS), lambda v: v.repeats, every=6)
)
each_that_asks = pytest.mark.parametrize("variant", cases(FAST, lambda variant: variant.asks_all))


def built(hub: Path, variant: Variant, *words: str) -> Experiment:
    return federation(hub, *variant.words, *words, model=variant.model, task=variant.task)


def numbers(value: object) -> Iterator[float]:
    if isinstance(value, Mapping):
        for item in value.values():
            yield from numbers(item)
    elif isinstance(value, int | float):
        yield float(value)


@each
def test_a_run_has_finite_figures_and_a_ledger(hub: Path, variant: Variant) -> None:
    """And the same seed gives the same run, with dropout, whatever else drew random numbers."""
    runs = []
    for _ in range(2 if variant in TWICE else 1):
        fed = built(hub, variant, *variant.dropout, variant.fewest)
        log = Recorder(fed)
        history = fed.run()
        replies = [digest(reply) for _, _, reply in log.log]
        runs.append((without_seconds(history), replies, tensors_digest(dict(fed.server.state))))
    assert all(found == runs[0] for found in runs)
    last = fed.config.rounds if fed.config.framework.trains else 0
    assert [line["round"] for line in history] == list(range(last + 1))
    for line in history:
        assert json.loads(json.dumps(line)) == line
        assert all(math.isfinite(number) for number in numbers(line))
        assert {"loss", "shipped", "asked", "replied", "missing", "seconds"} <= line.keys()
    crossed = fed.fleet.ledger.bytes_total("up"), fed.fleet.ledger.bytes_total("down")
    assert (min(crossed) > 0) == (variant.framework not in ("zero_shot", "centralised"))
    assert (distance(fed.server.state, fed.server.initial) > 0) == variant.ships


@pytest.mark.usefixtures("uncounted")
@pytest.mark.parametrize("framework", ["fedllm", "zero_shot", "centralised"])
def test_another_seed_gives_another_run(hub: Path, framework: str) -> None:
    words = VARIANTS[framework].words
    runs = [federation(hub, *words, f"seed={seed}") for seed in (0, 1)]
    first, second = (without_seconds(fed.run()) for fed in runs)
    assert first != second


@each_that_asks
def test_a_sample_of_the_clients_is_asked(hub: Path, variant: Variant) -> None:
    fed = built(hub, variant, "data.num_clients=4", "fleet.clients_per_round=2", "rounds=2")
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


# The second ask of a round is the teacher; in a split, the fourth is the last of a batch. Where the
# activations are kept: the listing, the upload, the part of the client; then batches.
LATER = {
    "kd": (2,),
    "kd cached, confident": (2,),
    "split relay": (2, 3),
    "split": (3,),
    "split u": (3, 4),
    "split cache": (2,),
    "split kept v1": (2,),
    "split kept u": (2, 3, 4),
    "split v1": (4,),
    "split v2": (2,),
}
FAILURES = [
    pytest.param(VARIANTS[name], at, id=f"{name}, ask {at}")
    for name, asks in LATER.items()
    for at in asks
]
FIRST = [pytest.param(*case.values, 1, id=case.id, marks=case.marks)
         for case in cases(FAST, lambda variant: variant.asks_all)]  # fmt: skip


@pytest.mark.usefixtures("uncounted")
@pytest.mark.parametrize(("variant", "at"), [*FIRST, *FAILURES])
def test_a_client_that_fails_is_done_without(hub: Path, variant: Variant, at: int) -> None:
    fed = built(hub, variant, "fleet.min_replies=2", variant.fewest)
    client = failing(fed, at)
    history = fed.run()
    for line in history[1:]:
        assert line["missing"] == {client.name: "RuntimeError: the disk is full"}
        assert (line["asked"], line["replied"]) == (3, 2)
        assert all(math.isfinite(number) for number in numbers(line))
    if variant.ships:
        assert distance(fed.server.state, fed.server.initial) > 0


@pytest.mark.usefixtures("uncounted")
@each_that_asks
def test_without_leave_to_fail_the_run_ends_and_says_why(hub: Path, variant: Variant) -> None:
    fed = built(hub, variant)
    failing(fed, 1)
    with pytest.raises(RoundFailed, match=r"round 1: 2 of 3 .*client-1: .*the disk is full"):
        fed.run()


@pytest.mark.usefixtures("uncounted")
@each_that_asks
def test_clients_answer_anything_with_a_message(hub: Path, variant: Variant) -> None:
    fed = built(hub, variant)
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


@pytest.mark.usefixtures("uncounted")
@pytest.mark.parametrize("framework", ["local_only", "{name: kd, direction: both}"])
def test_clients_tell_the_scores_of_what_their_models_write(hub: Path, framework: str) -> None:
    words = (f"framework={framework}", "rounds=1", "task.generate=3", "task.max_new_tokens=4")
    fed = federation(hub, *words, task="causal_lm")
    on_paper(fed)
    own = fed.run()[-1]["clients"]
    assert len(own) == 3
    for found in own.values():
        assert {"loss", "exact_match", "chrf", "bleu", "rouge_l"} <= found.keys()


@pytest.mark.usefixtures("uncounted")
@each_that_asks
def test_replies_that_are_not_what_was_asked_are_refused(hub: Path, variant: Variant) -> None:
    """The server survives a client that answers with an empty message of the right verb."""
    fed = built(hub, variant, "fleet.min_replies=2", variant.fewest)
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
