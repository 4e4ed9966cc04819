"""Hidden states on their way: the mean over those who speak, bytes on the books, refusals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hidden_help import PROJECTED, SIZE, framework_of, kd, noise, probe_of
from torch import Tensor

from tiny import Recorder, experiment_config, public_set, run_rounds
from trillium.errors import UserError
from trillium.federation.client import verbs_of
from trillium.federation.side import Side
from trillium.frameworks.kd.filters import Filter
from trillium.frameworks.kd.hidden import mean_hidden, read_hidden
from trillium.frameworks.kd.hiddens.projected import Projected
from trillium.frameworks.kd.opinion import Opinion
from trillium.frameworks.kd.protocol import KD
from trillium.tasks import Example
from trillium.tasks.batches import collate
from trillium.wire.kinds import MessageError
from trillium.wire.message import Message, decode
from trillium.wire.soft_labels import SoftLabels

# What crosses


class Some(Filter):
    """Each client keeps the examples whose index is not its own number modulo three."""

    def keep(self, side: Side, own: Sequence[Example], public: Sequence[Example]) -> Tensor | None:
        number = int(side.name[-1])
        return torch.tensor([example.index % 3 != number for example in public], dtype=torch.bool)


def messages(log: Recorder, verb: str, *, answers: bool) -> dict[str, Message]:
    found = {}
    for client, ask, answer in log.log:
        message = decode(answer if answers else ask)
        if message.verb == verb:
            found[client] = message
    return found


@pytest.mark.parametrize("task", ["classification", "causal_lm"])
def test_the_mean_is_over_those_who_speak(hub: Path, task: str) -> None:
    fed = kd(hub, PROJECTED, task=task)
    chosen = framework_of(fed).model_copy(update={"filter": Some()})
    fed.config = fed.config.model_copy(update={"framework": chosen})
    for client in fed.clients:
        client.verbs = verbs_of(chosen, fed.config.head)
    log = Recorder(fed)
    run_rounds(fed, 1)
    told = messages(log, "teach", answers=True)
    sums: dict[int, Any] = {}
    zero_padded: dict[int, Any] = {}
    for client in fed.clients:
        hidden, start = told[client.name].tensors["activations/hidden"].double(), 0
        for example in public_set(fed):
            speaks = example.index % 3 != int(client.name[-1])
            count = fed.server.task.num_targets(example)
            weight, rows = sums.get(example.index, (0.0, 0.0))
            mass, _ = zero_padded.get(example.index, (0.0, None))
            if speaks:
                rows = rows + client.weight * hidden[start : start + count]
                weight, start = weight + client.weight, start + count
            sums[example.index] = weight, rows
            zero_padded[example.index] = mass + client.weight, rows
        assert start == len(hidden)
    expected = torch.cat([rows / weight for weight, rows in sums.values()])
    for ask in messages(log, "learn", answers=False).values():
        found = ask.tensors["activations/teacher"].double()
        assert torch.allclose(found, expected, atol=1e-6)
        padded = torch.cat([rows / mass for mass, rows in zero_padded.values()])
        assert not torch.allclose(found, padded, atol=1e-2)


def test_a_part_of_the_asked_is_learnt_from() -> None:
    def opinion(weight: float, indices: list[int], hidden: Tensor) -> Opinion:
        labels = SoftLabels(None, hidden, 2)  # type: ignore[arg-type]
        return Opinion(weight, 0.0, indices, labels, hidden=hidden)

    slices = {4: slice(0, 2), 5: slice(2, 2), 7: slice(2, 3), 9: slice(3, 4)}
    one, other = noise(3, 2), noise(2, 2, 2)
    found = mean_hidden([opinion(3.0, [4, 7], one), opinion(1.0, [7, 9], other)], slices, [5, 7, 9])
    assert found is not None
    assert torch.allclose(found, torch.stack([0.75 * one[2] + 0.25 * other[0], other[1]]))
    none = Opinion(1.0, 0.0, [4], SoftLabels(None, one, 2))  # type: ignore[arg-type]
    assert mean_hidden([none], slices, [4]) is None


WIRES = [
    ((), 4 * SIZE),
    (("wire.up=[{name: int8, kinds: [activations]}]",), SIZE + 2),
    (("wire.up=[{name: cast, dtype: float16, kinds: [activations]}]",), 2 * SIZE),
]


@pytest.mark.parametrize(("words", "row"), WIRES)
@pytest.mark.parametrize("task", ["classification", "causal_lm"])
def test_bytes_are_booked_as_activations(
    hub: Path, task: str, words: tuple[str, ...], row: int
) -> None:
    fed = kd(hub, PROJECTED, *words, "framework.public_per_round=7", task=task)
    chosen: dict[int, list[int]] = {}
    choose = KD.chosen
    with pytest.MonkeyPatch.context() as patch:

        def noted(self: KD, server: Any) -> list[int]:
            chosen[server.round] = choose(self, server)
            return chosen[server.round]

        patch.setattr(KD, "chosen", noted)
        run_rounds(fed, 2)
    for entry in fed.fleet.ledger.entries:
        examples = [fed.server.public[index] for index in chosen.get(entry.round, [])]
        rows = sum(map(fed.server.task.num_targets, examples))
        sends = (entry.verb, entry.direction) in (("teach", "up"), ("learn", "down"))
        each = row if entry.direction == "up" else 4 * SIZE
        assert entry.kinds.get("activations", 0) == (rows * each if sends else 0)
        assert sum(entry.kinds.values()) == entry.bytes


def test_without_it_nothing_of_the_kind_crosses(hub: Path) -> None:
    fed = kd(hub)
    run_rounds(fed, 1)
    assert not any("activations" in entry.kinds for entry in fed.fleet.ledger.entries)


def test_states_are_sent_with_labels_that_are_not(hub: Path) -> None:
    """A label that has hardly changed stays; the state behind it is always fresh."""
    fed = kd(hub, PROJECTED, "framework.resend=1.0")
    log = Recorder(fed)
    run_rounds(fed, 2)
    last = messages(log, "teach", answers=True)
    assert all(len(m.tensors["logits/public"]) < 12 for m in last.values())
    assert all(len(m.tensors["activations/hidden"]) == 12 for m in last.values())


# What is refused

REFUSED = [
    ((PROJECTED, "framework.cache_rounds=2"), r"cache_rounds=2"),
    ((PROJECTED, "framework.ensemble=noisy_mean"), r"ensemble=noisy_mean"),
    ((PROJECTED, "tiers={a: {clients: [client-1], adapter: {r: 2}}}"), r"tiers\.a\.model .*common"),
    ((PROJECTED, "server={adapter: {r: 2}}"), r"server\.model .*common space"),
    (("framework.hidden=lora", "server={adapter: {r: 2}}"), r"server\.model .*common space"),
    (("framework.hidden=lora", "adapter=bitfit"), r"adapter=bitfit.* first factor"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "match"), REFUSED)
def test_settings_that_contradict_each_other_are_refused(
    hub: Path, words: tuple[str, ...], match: str
) -> None:
    with pytest.raises(UserError, match=match):
        experiment_config(hub, "framework=kd", *words)


def test_a_tier_that_names_the_same_model_is_not_refused(hub: Path) -> None:
    tier = f"tiers={{a: {{clients: [client-1], model: {{id: {hub / 'gpt2'}}}}}}}"
    experiment_config(hub, "framework=kd", PROJECTED, tier)


@pytest.mark.parametrize(
    ("word", "match"),
    [
        ("framework.hidden={name: projected, size: 13}", "12 features"),
        ("framework.hidden={name: lora, layer: h.1.attn.c_atn}", "Did you mean .*c_attn"),
    ],
)
def test_what_the_model_has_not_is_refused_before_the_first_round(
    hub: Path, word: str, match: str
) -> None:
    fed = kd(hub, word)
    with pytest.raises(UserError, match=match):
        run_rounds(fed, 0)


def test_a_layer_that_sees_no_tokens_is_refused(hub: Path) -> None:
    fed = kd(hub)
    probe = Projected(size=SIZE).probe(fed.server)
    batch = collate(public_set(fed)[:4], 0, torch.device("cpu"))
    for seen in ([], [torch.zeros(9, 12)], [torch.zeros(4, 3, 12)], [torch.zeros(3, 16, 12)]):
        with pytest.raises(UserError, match="no hidden state of each"):
            probe.rows(seen, batch)
    assert probe.rows([torch.zeros(4, 12)], batch).shape == (4, SIZE)


@pytest.mark.parametrize(
    "tensor",
    [
        None,
        torch.zeros(3, SIZE + 1),
        torch.zeros(2, SIZE),
        torch.zeros(3, SIZE, dtype=torch.int8),
        torch.full((3, SIZE), float("nan")),
    ],
)
def test_wrong_states_from_a_peer_are_refused(hub: Path, tensor: Tensor | None) -> None:
    fed = kd(hub, PROJECTED)
    probe = probe_of(fed.server, fed)
    name = "activations/hidden"
    message = Message("teach", {} if tensor is None else {name: tensor})
    with pytest.raises(MessageError):
        read_hidden(message, name, 3, probe)
    if tensor is not None:
        with pytest.raises(MessageError, match="not asked for"):
            read_hidden(message, name, 3, None)
    assert read_hidden(Message("teach"), name, 3, None) is None
    good = Message("teach", {name: torch.ones(3, SIZE, dtype=torch.float16)})
    assert read_hidden(good, name, 3, probe).dtype == torch.float32  # type: ignore[union-attr]
