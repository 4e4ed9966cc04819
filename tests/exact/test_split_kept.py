"""Activations that are sent once where the exchange goes on: what is kept changes nothing but bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tiny import EXACT, Recorder, distance, federation, perturb, run_round, run_rounds
from trillium.errors import UserError
from trillium.experiment.run import Experiment
from trillium.frameworks.split.activation_cache import digest_of
from trillium.tasks import Example
from trillium.wire.kinds import MessageError
from trillium.wire.message import Message, decode
from variants import slow_but

CASES = slow_but(
    [
        ("llama", "causal_lm", "splitfed_v2", "two_part"),
        ("bert", "classification", "splitfed_v1", "u"),
        ("gpt2", "causal_lm", "coalesced", "u"),
    ],
    [
        ("gpt2", "classification", "relay", "two_part"),
        ("bert", "classification", "splitfed_v1", "two_part"),
        ("gpt2", "causal_lm", "splitfed_v1", "two_part"),
        ("gpt2", "classification", "coalesced", "u"),
        ("llama", "causal_lm", "coalesced", "u"),
        ("gpt2", "causal_lm", "splitfed_v2", "u"),
        ("gpt2", "classification", "relay", "u"),
    ],
)
FIXED = ("framework=split", "framework.train=server", "training.max_grad_norm=0.2")
PLAIN = "framework.cache=false"


def split(hub: Path, *words: str, **options: Any) -> Experiment:
    return perturb(federation(hub, *FIXED, *words, **options))


def verbs(fed: Experiment, number: int) -> set[str]:
    entries = [entry for entry in fed.fleet.ledger.entries if entry.purpose == "train"]
    return {entry.verb for entry in entries if entry.round == number}


def pooled(fed: Experiment) -> list[Example]:
    return [example for client in fed.clients for example in client.examples]


@pytest.mark.usefixtures("uncounted")
@pytest.mark.parametrize(("model", "task", "mode", "shape"), CASES)
def test_what_is_kept_trains_as_what_is_sent_again(
    hub: Path, model: str, task: str, mode: str, shape: str
) -> None:
    """Ragged texts, clients of different sizes, two epochs a round: to float tolerance, since texts are
    not in the same company when their activations are computed."""
    words = (f"framework.mode={mode}", f"framework.shape={shape}", "training.local_epochs=2",
             "data.partition={name: size_skewed, power: 1.0}")  # fmt: skip
    kept, plain = (split(hub, *words, *own, model=model, task=task) for own in ((), (PLAIN,)))
    figures = [[f["train_loss"] for f in run_rounds(fed, 2)] for fed in (kept, plain)]
    assert distance(kept.server.state, plain.server.state) < EXACT[model]
    assert figures[0] == pytest.approx(figures[1], abs=EXACT[model])
    assert distance(kept.server.state, kept.model.initial) > 1e-3
    once = {"list_samples", "send_activations"}
    tails = {"begin", "finish_batch", "finish"} if shape == "u" else set()
    assert verbs(kept, 1) == once | tails
    assert verbs(kept, 2) == {"list_samples"} | tails
    assert "forward" in verbs(plain, 2)


@pytest.mark.usefixtures("uncounted")
@pytest.mark.parametrize(("model", "task", "mode", "shape"), CASES)
def test_bit_for_bit_where_texts_are_alone(
    hub: Path, model: str, task: str, mode: str, shape: str
) -> None:
    """Batches of one text of eight tokens: the same shapes with and without the cache."""
    states = []
    for own in ((), (PLAIN,), (PLAIN, "training.optimizer.lr=0.0100001")):
        words = (f"framework.mode={mode}", f"framework.shape={shape}", "training.batch_size=1")
        fed = split(hub, *words, *own, "model.dtype=float32", model=model, task=task)
        for client in fed.clients:
            draw = torch.Generator().manual_seed(len(client.examples))
            texts = torch.randint(4, 44, (5, 8), generator=draw)
            is_lm = task == "causal_lm"
            client.examples = [
                Example(place, text, text if is_lm else torch.tensor(place % 3))
                for place, text in enumerate(texts)
            ]
            client.__dict__.pop("weight", None)
        run_rounds(fed, 2)
        states.append(fed.server.state)
    kept, plain, other = states
    assert all(torch.equal(kept[name], plain[name]) for name in plain)
    assert not all(torch.equal(kept[name], other[name]) for name in plain)


def test_activations_go_up_once_and_labels_never(hub: Path) -> None:
    """The bytes of the U shape by hand, in float32; the tail's own messages go on."""
    fed, plain = (
        split(hub, "framework.shape=u", "model.dtype=float32", "rounds=3", *own)
        for own in ((), (PLAIN,))
    )
    for each in (fed, plain):
        run_rounds(each, 3)
    tokens = sum(example.num_tokens for example in pooled(fed))
    entries = fed.fleet.ledger.entries

    def total(kind: str, direction: str, of: Experiment = fed) -> int:
        found = [e for e in of.fleet.ledger.entries if e.direction == direction]
        return sum(entry.kinds.get(kind, 0) for entry in found)

    assert total("activations", "up") == 4 * 12 * tokens
    assert total("activations", "up", plain) == 3 * total("activations", "up")
    assert total("activations", "down") == total("gradients", "up") == 3 * 4 * 12 * tokens
    assert total("activations", "down") == total("activations", "down", plain)
    assert total("labels", "up") == 0
    # Clients run their first blocks once, and the tail as ever.
    spent = {v: sum(e.flops or 0 for e in entries if e.verb == v) for v in verbs(fed, 1)}
    before = [e.flops or 0 for e in plain.fleet.ledger.entries if e.verb == "forward"]
    assert 0 < spent["send_activations"] < sum(before) / 3  # no padding, either
    after = [e.flops or 0 for e in plain.fleet.ledger.entries if e.verb == "finish_batch"]
    assert spent["finish_batch"] == sum(after)


def test_a_hash_does_not_tell_labels_that_stay(hub: Path) -> None:
    hashes = {}
    for shape in ("u", "two_part"):
        fed = split(hub, f"framework.shape={shape}")
        client = fed.clients[0]
        ask = Message("list_samples", {"control/held": torch.zeros(1, 16, dtype=torch.uint8)})
        found = []
        for label in (0, 1):
            example = client.examples[0]
            client.examples[0] = Example(0, example.input_ids, torch.tensor(label))
            reply = client.verbs["list_samples"](client, ask)
            found.append(reply.tensors["control/digests"][0].tolist())
        hashes[shape] = found
    assert hashes["u"][0] == hashes["u"][1]
    assert hashes["two_part"][0] != hashes["two_part"][1]
    counts = [torch.tensor([n]) for n in (1, 2)]
    text = torch.arange(4, 9)
    assert digest_of(text, counts[0]) != digest_of(text, counts[1])


def test_new_and_changed_samples_extend_what_is_kept(hub: Path) -> None:
    fed = split(hub, "framework.shape=u")
    log = Recorder(fed)
    run_rounds(fed, 1)
    client = fed.clients[1]
    ids = client.examples[3].input_ids
    client.examples[3] = Example(3, ids.flip(0), client.examples[3].labels)
    client.examples.append(Example(99, torch.cat([ids, ids]), torch.tensor(1)))
    client.examples[2] = Example(2, client.examples[2].input_ids, torch.tensor(2))  # only a label
    log.log.clear()
    run_round(fed, 2)
    asked = [
        (name, decode(request).tensors["control/positions"].tolist())
        for name, request, _ in log.log
        if decode(request).verb == "send_activations"
    ]
    assert asked == [(client.name, [3, len(client.examples) - 1])]
    assert fed.fleet.missing == {}
    steps = [decode(request) for name, request, _ in log.log if name == client.name]
    named = [m.tensors["control/samples"] for m in steps if m.verb == "finish_batch"]
    assert sorted(torch.cat(named).tolist()) == list(range(len(client.examples)))


def test_a_client_answers_for_its_own_batches_alone(hub: Path) -> None:
    """Else a gradient would be that of other texts than the server takes it for."""
    fed = split(hub, "framework.shape=u", "fleet.min_replies=2")
    client = fed.clients[1]
    honest = client.verbs["finish_batch"]

    def chosen(me: Any, message: Message) -> Message:
        samples = message.tensors["control/samples"].flip(0)
        return honest(me, Message(message.verb, {**message.tensors, "control/samples": samples}))

    client.verbs = {**client.verbs, "finish_batch": chosen}
    run_rounds(fed, 1)
    assert set(fed.fleet.missing) == {client.name}
    assert "not those of the next batch" in fed.fleet.missing[client.name]
    with pytest.raises(MessageError, match="no batches left"):
        honest(fed.clients[0], Message("finish_batch", {"control/samples": torch.zeros(1).int()}))


@pytest.mark.usefixtures("uncounted")
def test_it_is_refused_or_left_where_it_cannot_be(hub: Path) -> None:
    for shape in ("framework.shape=u", "framework.mode=relay"):
        with pytest.raises(UserError, match="activations of a sample change with every step"):
            split(hub, shape, "framework.train=both", "framework.cache=true")
        with pytest.raises(UserError, match="different each time"):
            run_rounds(split(hub, shape, "model.dropout=0.1", "framework.cache=true"), 1)
        fed = split(hub, shape, "model.dropout=0.1")
        run_rounds(fed, 1)
        assert "cache" not in fed.server.scratch
        assert "forward" in verbs(fed, 1)


@pytest.mark.usefixtures("uncounted")
@pytest.mark.parametrize("words", [("framework.shape=u",), ("framework.mode=splitfed_v1",)])
def test_clients_may_differ_in_their_blocks(hub: Path, words: tuple[str, ...]) -> None:
    thin = "tiers={thin: {clients: [client-1], cut: 1}}"
    alike, mixed = (split(hub, "framework.cut=2", *words, *own) for own in ((), (thin,)))
    for fed in (alike, mixed):
        run_rounds(fed, 2)
    assert distance(alike.server.state, mixed.server.state) < EXACT["gpt2"]


@pytest.mark.usefixtures("uncounted")
@pytest.mark.parametrize("words", [("framework.shape=u",), ("framework.mode=relay",)])
def test_blocks_that_clients_have_trained_alone_are_run_once(
    hub: Path, words: tuple[str, ...]
) -> None:
    """After the local round, training is that of a run which starts from these blocks."""
    fed = split(hub, "framework.local_rounds=1", "rounds=2", *words)
    run_rounds(fed, 1)
    begun = {name: tensor.detach().clone() for name, tensor in fed.server.state.items()}
    assert any(not torch.equal(begun[n], fed.model.initial[n]) for n in begun if ".0." in n)
    other = split(hub, "rounds=2", PLAIN, *words)
    other.model.initial.update(begun)
    other.server.state = other.model.state()
    for each in (fed, other):
        run_round(each, 2)
    assert verbs(fed, 1) == {"train_blocks"}
    assert "send_activations" in verbs(fed, 2)
    assert distance(fed.server.state, other.server.state) < EXACT["gpt2"]
    assert distance(fed.server.state, begun) > 1e-3
