"""What crosses in FedLLM, what stays, and what both sides agree on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fedllm_help import SIGN, UNEQUAL, crossed, numel, size

from tiny import (
    Recorder,
    distance,
    federation,
    run_round,
    run_rounds,
)
from trillium.federation.engine import Gathered
from trillium.models.slots import values
from trillium.wire.kinds import Tensors


def test_ffa_never_sends_nor_trains_a(hub: Path) -> None:
    fed = federation(hub, "framework.mask=ffa", "adapter.init=orthonormal", *UNEQUAL, model="bert")
    log = Recorder(fed)
    run_rounds(fed, 2)
    expected = sum(t.numel() for t in fed.model.initial.values()) - numel(fed, "lora_A")
    assert {size(message) for _, message in crossed(log, fed, "up")} == {expected}
    assert {size(message) for _, message in crossed(log, fed, "down")} == {0, expected}
    for name, start in fed.model.initial.items():
        moved = float((fed.server.state[name] - start).abs().max()) > 0
        assert moved == ("lora_A" not in name)
        if "lora_A" in name:
            assert torch.allclose(start @ start.T, torch.eye(3, dtype=start.dtype), atol=1e-12)


def test_rolora_trains_b_first_and_the_resting_factor_does_not_travel(hub: Path) -> None:
    fed = federation(hub, "framework.mask=rolora", "framework.download=change", model="bert")
    head = numel(fed, "modules_to_save")
    for number, moving, resting in ((1, "lora_B", "lora_A"), (2, "lora_A", "lora_B")):
        before, log = values(fed.server.state), Recorder(fed)
        run_round(fed, number)
        assert {size(m) for _, m in crossed(log, fed, "up")} == {numel(fed, moving) + head}
        came = {size(m) for _, m in crossed(log, fed, "down")}
        assert came == {0 if number == 1 else numel(fed, resting) + head}
        for name, parameter in fed.server.state.items():
            assert torch.equal(parameter, before[name]) == (resting in name)


def test_what_is_local_stays_with_its_client(hub: Path) -> None:
    """FedSA-LoRA: `A` is shared; `B` and the head are each client's own, and are not mixed up."""
    words = ("framework.local=[lora_B, head]", "data.num_clients=4", "fleet.clients_per_round=2")
    fed = federation(hub, *words, "rounds=4", model="bert")
    log = Recorder(fed)
    history = fed.run()
    assert {size(m) for _, m in crossed(log, fed, "up") if m.verb == "train"} == {
        numel(fed, "lora_A")
    }
    kept = [client.store["tensors"] for client in fed.clients if "tensors" in client.store]
    assert len(kept) == 4
    for name, start in fed.model.initial.items():
        if "lora_A" not in name:
            assert torch.equal(fed.server.state[name], start)
            assert len({float(own[name].abs().sum()) for own in kept}) == 4
    assert history[-1]["shipped"] == "mean of the clients' models"
    own = [line["accuracy"] for line in history[-1]["clients"].values()]
    assert history[-1]["accuracy"] == pytest.approx(sum(own) / 4)


def test_a_tier_holds_its_layers_only(hub: Path) -> None:
    fed = federation(hub, "tiers={edge: {clients: [client-2], layers: [2]}}", model="bert")
    log = Recorder(fed)
    run_rounds(fed, 2)
    sizes = {name: size(message) for name, message in crossed(log, fed, "up")}
    assert sizes["client-2"] < sizes["client-0"] == sizes["client-1"]
    third = (sizes["client-0"] - numel(fed, "modules_to_save")) / 3
    assert sizes["client-2"] == third + numel(fed, "modules_to_save")


def test_a_tier_has_steps_and_codecs_of_its_own(hub: Path) -> None:
    tier = "tiers={slow: {clients: ['client-[01]'], local_steps: 1, up: [int4], link: {up: 1.0e6}}}"
    fed = federation(hub, tier, "training.local_epochs=3")
    fed.run()
    up = {e.client: e for e in fed.fleet.ledger.entries if e.direction == "up" and e.round == 1}
    slow, fast = up["client-1"].flops, up["client-2"].flops
    assert slow is not None
    assert fast is not None
    assert slow < fast
    assert up["client-1"].kinds["parameters"] * 5 < up["client-2"].kinds["parameters"]


@pytest.mark.parametrize("words", [SIGN, ("framework.download=change", "wire.down=[int4]"),
                                   ("framework.download=change",),
                                   ("wire.down=[int8]",)])  # fmt: skip
def test_both_sides_agree_on_what_the_client_holds(hub: Path, words: tuple[str, ...]) -> None:
    """In every round and bit for bit; with clients that are not asked in every round."""
    more = ("data.num_clients=4", "fleet.clients_per_round=3", "rounds=5")
    fed = federation(hub, *words, *more, "model.dtype=float32", model="bert")
    download = fed.config.framework.download  # type: ignore[attr-defined]
    sent: dict[str, Tensors] = {}
    seen = []
    receive = type(download).receive

    class Watched(type(download)):  # type: ignore[misc]
        def settle(self, store: Any, parcel: Any, found: Any, answered: bool) -> None:
            super().settle(store, parcel, found, answered)
            sent[parcel.client] = found.held

        def receive(self, *rest: Any) -> Tensors:
            found: Tensors = receive(self, *rest)
            seen.append(found)
            return found

    framework = fed.config.framework.model_copy(update={"download": Watched()})
    fed.config = fed.config.model_copy(update={"framework": framework})
    for client in fed.clients:
        client.verbs = {"train": framework.train}  # type: ignore[attr-defined]
    for number in range(1, 6):
        seen.clear()
        run_round(fed, number)
        assert len(seen) == 3
        for name, held in zip(sorted(fed.fleet.asked), seen, strict=True):
            for key, tensor in held.items():
                assert torch.equal(tensor, sent[name][key]), (number, name, key)
    far = distance({n: p for n, p in sent[fed.fleet.asked[0]].items()}, fed.model.initial)
    assert far > 1e-3


def test_a_late_joiner_gets_a_snapshot(hub: Path) -> None:
    fed = federation(hub, *SIGN, "data.num_clients=4", "rounds=3", "fleet.clients_per_round=3",
                     model="bert")  # fmt: skip
    engine: Any = fed.fleet.engine
    late = "client-3"
    engine.gather = lambda need: Gathered({c for c in engine.clients if c != late})
    run_rounds(fed, 2)
    engine.gather = lambda need: Gathered({*engine.clients} - {"client-0"}, {late})
    log, state = Recorder(fed), values(fed.server.state)
    run_round(fed, 3)
    messages = dict(crossed(log, fed, "down"))
    assert size(messages[late], "snapshot") == sum(t.numel() for t in state.values())
    assert size(messages[late]) == 0 < size(messages["client-1"])
    held = next(c for c in fed.clients if c.name == late).store["download"]["held"]
    for name, tensor in state.items():
        assert torch.equal(held[name], tensor)


def test_a_client_that_forgot_is_told_so_and_begins_anew(hub: Path) -> None:
    fed = federation(hub, *SIGN, "rounds=3", "fleet.min_replies=2", model="bert")
    run_rounds(fed, 1)
    fed.clients[0].store.clear()
    run_round(fed, 2)
    assert "holds nothing" in fed.fleet.missing["client-0"]
    log = Recorder(fed)
    run_round(fed, 3)
    assert not fed.fleet.missing
    assert size(dict(crossed(log, fed, "down"))["client-0"], "snapshot") > 0


def test_other_start_values_are_noticed(hub: Path) -> None:
    fed = federation(hub, "fleet.min_replies=2", model="bert")
    other = federation(hub, "seed=1", model="bert")
    fed.clients[1].model = other.model
    run_rounds(fed, 1)
    assert "the start values here are not those of the server" in fed.fleet.missing["client-1"]


@pytest.mark.parametrize("codec", ["sign", "int4", "{name: top_k, fraction: 0.1}"])
def test_nothing_is_lost_with_feedback(hub: Path, codec: str) -> None:
    """What a client sent in all, and what it still keeps, is what it wanted to send."""
    words = (f"wire.up=[{codec}]", "rounds=4", "data.num_clients=1")
    fed = federation(hub, *words, model="bert")
    wanted: Tensors = {}
    sent: Tensors = {}
    for number in range(1, 5):
        before, log = values(fed.server.state), Recorder(fed)
        kept = dict(fed.clients[0].store.get("lost", {}))
        run_round(fed, number)
        lost = fed.clients[0].store["lost"]
        update = crossed(log, fed, "up")[0][1].expect("parameters", before)
        for name, tensor in update.items():
            sent[name] = sent.get(name, 0.0) + tensor
            # The update itself: what was sent and lost, less what was left over before.
            own = tensor + lost[name] - kept.get(name, torch.zeros(()))
            wanted[name] = wanted.get(name, 0.0) + own
    for name in wanted:
        assert torch.allclose(sent[name] + fed.clients[0].store["lost"][name], wanted[name])
        assert float(fed.clients[0].store["lost"][name].abs().max()) > 0
    without = federation(hub, *words, "framework.feedback=0", model="bert")
    run_rounds(without, 2)
    assert "lost" not in without.clients[0].store or not without.clients[0].store["lost"]
