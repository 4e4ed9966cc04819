"""FedKSeed = plain SPSA by hand, and replay from scalars alone gives every side the same bits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tiny import Recorder, distance, federation, plain_loss, plain_model, round_batches, run_rounds
from tiny import tensors_digest as digest
from trillium.errors import UserError
from trillium.experiment.run import Experiment
from trillium.federation.client import Client
from trillium.federation.failed import RoundFailed
from trillium.frameworks import fedkseed
from trillium.frameworks.fedkseed import FedKSeed, Walker, signs
from trillium.models.slots import values
from trillium.rng import derive_seed, generator
from trillium.training.meters import Meter
from trillium.wire.message import Message, decode

WORDS = ("framework=fedkseed", "framework.lr=0.01", "training.local_steps=4")
FLOAT32 = "model.dtype=float32"


def seeds_and_scalars(reply: bytes, num_seeds: int = 1024) -> Tensor:
    """Read the scalars of a message without the framework's own code."""
    tensors = decode(reply).tensors
    if "control/seeds" not in tensors:
        return tensors["control/scalars"]
    found = torch.zeros(num_seeds)
    found[tensors["control/seeds"].long()] = tensors["control/scalars"]
    return found


def direction(seed: int, k: int, length: int) -> Tensor:
    """Draw a whole direction at once, bit by bit, from NumPy's generator."""
    stream = np.random.Philox(key=derive_seed(seed, "direction", k))
    bits = [(int(word) >> i) & 1 for word in stream.random_raw(-(-length // 64)) for i in range(64)]
    return 2.0 * torch.tensor(bits[:length], dtype=torch.float64) - 1.0


def by_hand(fed: Experiment, scalars: Tensor) -> dict[str, Tensor]:
    """Return `theta_0 + sum a_k z_k`, parameter by parameter."""
    state = {name: tensor.double().clone() for name, tensor in fed.model.initial.items()}
    sizes = [tensor.numel() for tensor in state.values()]
    for k, scalar in enumerate(scalars.tolist()):
        if scalar:
            parts = torch.split(direction(fed.config.seed, k, sum(sizes)), sizes)
            for tensor, part in zip(state.values(), parts, strict=True):
                tensor += scalar * part.view(tensor.shape)
    return state


@pytest.mark.parametrize(("model", "task"), [("bert", "classification"), ("llama", "causal_lm")])
def test_one_client_and_one_step_are_plain_spsa(hub: Path, model: str, task: str) -> None:
    """The loss at two points along a direction drawn by hand, on an ordinary PEFT module."""
    words = (*WORDS[:2], "data.num_clients=1", "training.local_steps=1", "framework.epsilon=0.01")
    fed = federation(hub, *words, model=model, task=task)
    plain = plain_model(fed).eval()
    log = Recorder(fed)
    (figure,) = run_rounds(fed, 1)
    k = int(decode(log.log[0][2]).tensors["control/seeds"])
    z = by_hand(fed, torch.zeros(1024).index_fill_(0, torch.tensor(k), 1.0))
    (batch,) = round_batches(fed, 1)
    losses = []
    for epsilon in (0.01, -0.01):
        with torch.no_grad():
            for name, parameter in plain.named_parameters():
                if name in z:
                    start = fed.model.initial[name]
                    parameter.copy_(start + epsilon * (z[name] - start))
        losses.append(plain_loss(plain, batch).item())
    slope = (losses[0] - losses[1]) / 0.02
    assert abs(slope) > 1e-3
    scalar = float(decode(log.log[0][2]).tensors["control/scalars"])
    assert scalar == pytest.approx(-0.01 * slope, rel=1e-4 if model == "llama" else 1e-6)
    assert figure["train_loss"] == pytest.approx(sum(losses) / 2, rel=1e-6)
    wanted = {name: start + scalar * (z[name] - start) for name, start in fed.model.initial.items()}
    assert distance(fed.server.state, wanted) < 1e-12


def test_a_client_that_was_never_there_replays_the_same_bits(hub: Path) -> None:
    fed = federation(hub, *WORDS, FLOAT32, "rounds=3", "adapter=full")
    fed.run()
    fresh = federation(hub, *WORDS, FLOAT32, "rounds=3", "adapter=full").clients[2]
    framework = fed.config.framework
    assert isinstance(framework, FedKSeed)
    replayed = framework.replay(fresh, fed.server.store["scalars"]).state
    assert digest(values(replayed)) == digest(values(fed.server.state))
    assert all(client.store == {} for client in fed.clients)
    # Control: another order of the additions is another rounding.
    backwards = Walker.at_start(fresh)
    steps = fed.server.store["scalars"]
    for k in reversed(steps.nonzero()[:, 0].tolist()):
        backwards.move(fresh.seed, {k: float(steps[k])})
    assert digest(values(backwards.state)) != digest(values(fed.server.state))
    assert distance(backwards.state, fed.server.state) < 1e-6


def test_the_servers_state_is_the_sum_over_directions(hub: Path) -> None:
    fed = federation(hub, *WORDS)
    run_rounds(fed, 2)
    assert distance(fed.server.state, by_hand(fed, fed.server.store["scalars"])) < 1e-12


def test_scalars_are_averaged_by_examples_and_not_summed(hub: Path) -> None:
    fed = federation(hub, *WORDS, "data.partition={name: size_skewed, power: 1.0}")
    log = Recorder(fed)
    run_rounds(fed, 1)
    weights = torch.tensor([float(len(client.examples)) for client in fed.clients])
    assert len(set(weights.tolist())) == 3
    sent = torch.stack([seeds_and_scalars(reply) for _, _, reply in sorted(log.log)]).double()
    mean = (weights.double() / weights.sum()) @ sent
    assert torch.allclose(fed.server.store["scalars"].double(), mean, rtol=1e-6, atol=0)
    for wrong in (sent.sum(0), sent.mean(0)):  # defect of public code, and an unweighted mean
        assert not torch.allclose(fed.server.store["scalars"].double(), wrong, rtol=1e-2, atol=0)


def test_clients_and_rounds_draw_directions_of_their_own(hub: Path) -> None:
    fed = federation(hub, *WORDS, "training.local_steps=12")
    log = Recorder(fed)
    run_rounds(fed, 2)
    drawn = [tuple(decode(reply).tensors["control/seeds"].tolist()) for _, _, reply in log.log]
    assert len(set(drawn)) == 6
    assert all(len(seeds) >= 10 for seeds in drawn)
    client = fed.clients[0]
    wanted = torch.randint(1024, (12,), generator=generator(0, "directions", client.name, 1))
    assert drawn[0] == tuple(sorted(set(wanted.tolist())))


def test_bytes_do_not_depend_on_the_size_of_the_model(hub: Path) -> None:
    """Full-parameter tuning, all 4096 scalars in use, 150 steps: less than 18 KB both ways."""

    def sizes(model: str, **state: Any) -> tuple[list[int], int]:
        words = (
            *WORDS,
            "framework.num_seeds=4096",
            "adapter=full",
            "rounds=1",
            "framework.lr=1e-6",
        )
        fed = federation(hub, *words, "training.local_steps=150", "training.batch_size=1",
                         "data.num_clients=1", "training.max_length=4", model=model)  # fmt: skip
        fed.server.store |= state
        fed.run()
        entries = [e for e in fed.fleet.ledger.entries if e.purpose == "train"]
        return [e.bytes for e in entries], sum(p.numel() for p in fed.server.state.values())

    full = torch.full((4096,), 1e-9)
    (small, few), (large, many) = sizes("bert", scalars=full), sizes("llama", scalars=full)
    assert few != many
    assert small == large
    assert sum(small) < 18_000
    assert small[0] == pytest.approx(4 * 4096, abs=300)
    taken = len(set(torch.randint(4096, (150,), generator=generator(0, "directions", "client-0", 1))
                    .tolist()))  # fmt: skip
    assert small[1] == pytest.approx(6 * taken, abs=500)
    first, _ = sizes("bert")
    assert first[0] < 300  # there is nothing to tell yet


def test_it_learns_and_shuffled_scalars_do_not(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = (*WORDS, "training.local_steps=30", "rounds=3")
    learnt = federation(hub, *words, model="bert").run()
    assert learnt[-1]["loss"] < learnt[0]["loss"] - 0.2
    assert learnt[-1]["train_loss"] < learnt[1]["train_loss"] - 0.2
    decoded = FedKSeed._decode

    def shuffled(self: FedKSeed, message: Message) -> Tensor:
        found = decoded(self, message)
        return found[torch.randperm(len(found), generator=torch.Generator().manual_seed(1))]

    fed = federation(hub, *words, model="bert")
    monkeypatch.setattr(fed.config.framework.__class__, "_decode", shuffled)
    assert fed.run()[-1]["loss"] > learnt[0]["loss"] - 0.1


def test_it_composes_with_adapters_heads_and_frozen_tensors(hub: Path) -> None:
    words = ("head=ridge", "training.lr_factors={head: 0}", "adapter=bitfit", "rounds=1")
    fed = federation(hub, *WORDS[:2], *words, model="bert")
    history = fed.run()
    head = fed.server.store["head"]
    assert all(torch.equal(fed.server.state[name], head[name]) for name in head)
    moved = [n for n, p in fed.server.state.items() if not torch.equal(p, fed.server.initial[n])]
    assert set(moved) == fed.server.state.keys() - head.keys()
    assert history[0]["accuracy"] > 0.7


def test_memory_is_that_of_inference(hub: Path) -> None:
    """A step holds no activations and no second copy: far below one step of backpropagation."""

    def peak(*words: str) -> int:
        fed = federation(hub, *words, "adapter=full", "rounds=1", "training.batch_size=32",
                         "data.num_clients=1", model="bert")  # fmt: skip
        fed.run()
        return max(e.peak_bytes or 0 for e in fed.fleet.ledger.entries if e.purpose == "train")

    assert peak(*WORDS) < 0.5 * peak("framework=fedllm", "training.local_steps=4")


def test_a_move_holds_a_part_of_a_direction_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fedkseed, "CHUNK", 1024)
    meter = Meter({})
    walker = Walker({}, (torch.zeros(100 * 1024),))
    with meter.measure("move"):
        walker.move(0, {1: 0.5})
    assert 101 * 1024 * 4 <= meter.read().peak_bytes <= 103 * 1024 * 4


def test_a_direction_is_plus_and_minus_one_and_like_no_other() -> None:
    length = 100_000
    like = torch.empty(length)
    drawn = torch.stack([signs(np.random.Philox(key=key), like) for key in range(20)])
    assert bool((drawn.abs() == 1).all())
    deviation = length**-0.5
    assert float(drawn.mean(1).abs().max()) < 4.5 * deviation
    correlation = drawn @ drawn.T / length - torch.eye(20)
    assert 0 < float(correlation.abs().max()) < 4.5 * deviation
    assert float(correlation.std()) == pytest.approx(deviation, rel=0.3)
    lagged = (drawn[:, :-1] * drawn[:, 1:]).mean(1)
    assert float(lagged.abs().max()) < 4.5 * deviation


def test_the_bits_of_a_direction_are_fixed_for_good() -> None:
    """Golden values: the raw stream of Philox must never change between machines or releases."""
    found = signs(np.random.Philox(key=7), torch.empty(64))
    number = sum(1 << i for i, sign in enumerate(found.tolist()) if sign > 0)
    assert number == 0xDF4034B829E9FBA4


def test_a_direction_does_not_depend_on_how_it_is_cut(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = federation(hub, *WORDS).clients[0]

    def moved() -> str:
        walker = Walker.at_start(client)
        walker.move(3, {5: 0.25, 9: -0.5})
        found: str = digest(values(walker.state))
        return found

    whole = moved()
    monkeypatch.setattr("trillium.frameworks.fedkseed.CHUNK", 128)
    assert moved() == whole


@pytest.mark.parametrize(
    "words",
    [
        ("training.schedule=linear",),
        ("training.lr_factors={head: 0.1}",),
        ("model.dtype=bfloat16", "adapter=full"),
    ],
)
def test_what_does_not_replay_is_refused(hub: Path, words: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match="fedkseed"):
        federation(hub, *WORDS, *words).run()


BAD: list[dict[str, Tensor]] = [
    {"control/scalars": torch.ones(1023)},
    {"control/scalars": torch.ones(1024, dtype=torch.float64)},
    {"control/scalars": torch.full((1024,), float("nan"))},
    {"control/scalars": torch.ones(2), "control/seeds": torch.tensor([3, 1024]).short()},
    {"control/scalars": torch.ones(2), "control/seeds": torch.tensor([3, 3]).short()},
    {"control/scalars": torch.ones(2), "control/seeds": torch.tensor([-1, 3]).short()},
    {"control/scalars": torch.ones(3), "control/seeds": torch.tensor([1, 3]).short()},
]


@pytest.mark.parametrize("tensors", BAD)
def test_scalars_that_are_none_drop_the_client(hub: Path, tensors: dict[str, Tensor]) -> None:
    fed = federation(hub, *WORDS)
    honest = fed.clients[1].verbs["walk"]

    def lie(client: Client, message: Message) -> Message:
        reply: Message = honest(client, message).opened()
        kept = {n: t for n, t in reply.tensors.items() if n in ("control/weight", "control/loss")}
        return replace(reply, tensors={**kept, **tensors})

    fed.clients[1].verbs = {"walk": lie}
    with pytest.raises(RoundFailed, match=r"client-1: .*(scalars|seeds)"):
        fed.run()
