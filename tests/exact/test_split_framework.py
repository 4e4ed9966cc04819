"""Split-FedLLM through the seam = training the unsplit model."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tiny import (
    EXACT,
    Recorder,
    distance,
    federation,
    perturb,
    plain_loss,
    plain_model,
    plain_steps,
    round_batches,
    run_rounds,
    trained,
)
from trillium.experiment.run import Experiment
from trillium.rng import generator
from trillium.training.loop import batches
from trillium.wire.message import decode
from variants import slow_but

pytestmark = pytest.mark.usefixtures("uncounted")

CASES = [("gpt2", "classification"), ("bert", "classification"), ("gpt2", "causal_lm"),
         ("llama", "causal_lm")]  # fmt: skip
SHAPES = {
    "two_part": ("framework.shape=two_part",),
    "u": ("framework.shape=u",),
    "u with a block": ("framework.shape=u", "framework.tail=2"),
}
CLIP = 0.2
ROUNDS, STEPS = 2, 5


def split(hub: Path, *words: str, **options: Any) -> Experiment:
    one = ("data.num_clients=1", f"rounds={ROUNDS}", f"training.local_steps={STEPS}")
    clip = f"training.max_grad_norm={CLIP}"
    return perturb(federation(hub, *one, clip, "framework=split", *words, **options))


def at_client(name: str, shape: str) -> bool:
    """Whether a parameter lies at the client, read off its name: cut 1, tail 2 or the head alone."""
    block = re.search(r"\.(?:h|layers?)\.(\d+)\.", name)
    if block is None:  # the task head: nothing else outside the blocks trains
        return shape != "two_part"
    return int(block[1]) < 1 or (shape == "u with a block" and int(block[1]) >= 2)


def at_tail(name: str, shape: str) -> bool:
    return at_client(name, shape) and ".0." not in name.split("lora")[0]


def chosen(shape: str, train: str) -> Callable[[str], bool]:
    """Which parameters train; the last part of the U shape always does."""
    return {
        "both": lambda name: True,
        "server": lambda name: not at_client(name, shape) or at_tail(name, shape),
        "client": lambda name: at_client(name, shape),
    }[train]


def unsplit(fed: Experiment, keep: Callable[[str], bool] = lambda name: True) -> nn.Module:
    """The federation's model before training, with some of its parameters frozen."""
    plain = plain_model(fed)
    for name, parameter in trained(plain).items():
        parameter.requires_grad_(keep(name))
    return plain


@pytest.mark.parametrize(
    ("model", "task", "shape", "train"),
    slow_but(
        [
            ("gpt2", "classification", "u", "both"),
            ("bert", "classification", "u with a block", "both"),
            ("gpt2", "causal_lm", "two_part", "server"),
            ("llama", "causal_lm", "u with a block", "client"),
        ],
        [(*case, shape, "both") for case in CASES for shape in SHAPES]
        + [(*CASES[0], shape, train) for shape in SHAPES for train in ("server", "client")],
    ),
)
def test_one_client_is_unsplit_adamw_with_clipping(
    hub: Path, model: str, task: str, shape: str, train: str
) -> None:
    words = (*SHAPES[shape], f"framework.train={train}", "framework.cache=false")
    fed = split(hub, *words, model=model, task=task)
    plain = unsplit(fed, chosen(shape, train))
    figures = run_rounds(fed, ROUNDS)
    optimizer = torch.optim.AdamW(trained(plain).values(), lr=0.01, weight_decay=0.0)
    for number in range(ROUNDS):
        chunks = round_batches(fed, number + 1)
        losses = plain_steps(plain, chunks, optimizer, CLIP)
        sizes = [sum(fed.config.task.num_targets(e) for e in chunk) for chunk in chunks]
        mean = sum(a * b for a, b in zip(losses, sizes, strict=True)) / sum(sizes)
        assert figures[number]["train_loss"] == pytest.approx(mean, abs=EXACT[model])
    after = {name: p for name, p in plain.named_parameters() if name in fed.server.state}
    assert distance(fed.server.state, after) < EXACT[model]
    for name, parameter in fed.server.state.items():
        moved = not torch.equal(parameter, fed.model.initial[name])
        assert moved == chosen(shape, train)(name), name


FACTORS = {
    "faster head": {"head": 3.0},
    "frozen head": {"head": 0.0},
    "frozen client": {"*.0.*": 0.0},
    "lora plus": {"lora_B": 16.0, "head": 0.5},
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("factors", "staleness"),
    # A batch ahead is another algorithm, unless the client's first blocks rest.
    [*((name, 0) for name in FACTORS), ("frozen client", 1)],
)
def test_learning_rates_differ_by_tensor_as_in_the_unsplit_model(
    hub: Path, shape: str, factors: str, staleness: int
) -> None:
    chosen = FACTORS[factors]
    words = (f"training.lr_factors={chosen}", f"framework.staleness={staleness}")
    fed = split(hub, *SHAPES[shape], *words, "framework.cache=false")
    training = fed.config.training
    plain = unsplit(fed, lambda name: training.factor(name) > 0)
    run_rounds(fed, ROUNDS)
    groups = [
        {"params": [parameter], "lr": 0.01 * training.factor(name)}
        for name, parameter in trained(plain).items()
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    for number in range(ROUNDS):
        plain_steps(plain, round_batches(fed, number + 1), optimizer, CLIP)
    after = {name: p for name, p in plain.named_parameters() if name in fed.server.state}
    assert distance(fed.server.state, after) < EXACT["gpt2"]
    for name, parameter in fed.server.state.items():
        assert torch.equal(parameter, fed.model.initial[name]) == (training.factor(name) == 0)


def test_in_float32_the_gap_is_that_of_rounding(hub: Path) -> None:
    fed = split(hub, "model.dtype=float32")
    plain = unsplit(fed)
    run_rounds(fed, ROUNDS)
    optimizer = torch.optim.AdamW(trained(plain).values(), lr=0.01, weight_decay=0.0)
    for number in range(ROUNDS):
        plain_steps(plain, round_batches(fed, number + 1), optimizer, CLIP)
    assert distance(fed.server.state, trained(plain)) < 1e-5


@pytest.mark.parametrize("shape", SHAPES)
def test_clipping_each_side_by_itself_is_told_apart(hub: Path, shape: str) -> None:
    fed = split(hub, *SHAPES[shape])
    plain = unsplit(fed)
    run_rounds(fed, ROUNDS)
    optimizer = torch.optim.AdamW(trained(plain).values(), lr=0.01, weight_decay=0.0)
    parties: list[list[nn.Parameter]] = [[], []]
    for name, parameter in trained(plain).items():
        parties[at_client(name, shape)].append(parameter)
    for number in range(ROUNDS):
        for chunk in round_batches(fed, number + 1):
            optimizer.zero_grad()
            plain_loss(plain, chunk).backward()  # type: ignore[no-untyped-call]
            for party in parties:
                nn.utils.clip_grad_norm_(party, CLIP)
            optimizer.step()
    assert distance(fed.server.state, trained(plain)) > 1e-4


@pytest.mark.parametrize("shape", ["two_part", "u"])
def test_with_one_client_all_modes_are_one(hub: Path, shape: str) -> None:
    states, losses = [], []
    for mode in ("relay", "splitfed_v1", "splitfed_v2", "coalesced"):
        fed = split(hub, *SHAPES[shape], f"framework.mode={mode}")
        losses.append([figure["train_loss"] for figure in run_rounds(fed, ROUNDS)])
        states.append(fed.server.state)
    for state, loss in zip(states[1:], losses[1:], strict=True):
        # In float64 the mean of one client, a weight times and divided by, may be off by a rounding.
        assert loss == pytest.approx(losses[0], rel=1e-14)
        assert distance(state, states[0]) < 1e-15


@pytest.mark.parametrize("task", ["classification", "causal_lm"])
@pytest.mark.parametrize("mode", ["splitfed_v1", "coalesced"])
def test_the_u_shape_has_the_losses_of_two_parts(hub: Path, task: str, mode: str) -> None:
    """One SGD step a round: the mean of the clients' heads is then the step of a shared head."""
    figures, states = [], []
    for shape in ("two_part", "u"):
        fed = split(
            hub,
            "data.num_clients=3",
            "data.partition={name: size_skewed, power: 1.0}",
            *("training.max_grad_norm=null", "training.optimizer={name: sgd, lr: 0.1}"),
            *("training.local_steps=1", "training.batch_size=64"),
            *(f"framework.mode={mode}", *SHAPES[shape]),
            task=task,
        )
        figures.append([figure["train_loss"] for figure in run_rounds(fed, ROUNDS)])
        states.append(fed.server.state)
    assert figures[0] == pytest.approx(figures[1], abs=1e-10)
    assert figures[0][0] != pytest.approx(figures[0][1], abs=1e-4)
    assert distance(states[0], states[1]) < 1e-10


@pytest.mark.parametrize(
    ("model", "task", "shape", "mode"),
    slow_but(
        [
            ("gpt2", "classification", "two_part", "coalesced"),
            ("gpt2", "classification", "u with a block", "splitfed_v1"),
            ("bert", "classification", "u", "coalesced"),
            ("llama", "causal_lm", "two_part", "coalesced"),
        ],
        [(*CASES[0], shape, mode) for shape in SHAPES for mode in ("coalesced", "splitfed_v1")]
        + [(*case, shape, "coalesced") for case in CASES[1:] for shape in ("two_part", "u")],
    ),
)
def test_one_step_of_unequal_clients_is_one_step_on_the_union(
    hub: Path, model: str, task: str, shape: str, mode: str
) -> None:
    fed = split(
        hub,
        "data.num_clients=3",
        "data.partition={name: size_skewed, power: 1.0}",
        "training.batch_size=64",
        "training.local_steps=1",
        "training.max_grad_norm=null",
        "training.optimizer={name: sgd, lr: 0.1}",
        f"framework.mode={mode}",
        *SHAPES[shape],
        model=model,
        task=task,
    )
    assert len({len(client.examples) for client in fed.clients}) == 3
    plain = unsplit(fed)
    union = [example for client in fed.clients for example in client.examples]
    run_rounds(fed, 1)
    optimizer = torch.optim.SGD(trained(plain).values(), lr=0.1)
    plain_steps(plain, [union], optimizer)
    assert distance(fed.server.state, trained(plain)) < EXACT[model]
    assert distance(fed.server.state, fed.model.initial) > 1e-3


@pytest.mark.parametrize("mode", ["relay", "coalesced"])
def test_relay_hands_the_client_part_on(hub: Path, mode: str) -> None:
    fed = split(hub, "data.num_clients=3", f"framework.mode={mode}", "training.local_epochs=1")
    log = Recorder(fed)
    run_rounds(fed, 1)
    begun, finished = [], []
    for _, request, reply in log.log:
        if decode(request).verb == "begin":
            begun.append(decode(request).group("parameters"))
        if decode(reply).verb == "finish":
            finished.append(decode(reply).group("parameters"))
    assert len(begun) == len(finished) == 3
    handed_on = [
        distance(start, end) < 1e-15 for start, end in zip(begun[1:], finished[:-1], strict=True)
    ]
    assert handed_on == [mode == "relay"] * 2
    if mode == "relay":
        part = [n for n in sorted(fed.server.state) if ".h.0." in n]
        last = torch.cat([fed.server.state[n].detach().flatten() for n in part])
        assert distance({"flat": last}, finished[-1]) < 1e-15


def test_in_turns_every_client_is_clipped_with_its_own_batch(hub: Path) -> None:
    """SplitFed v2 written out: one body, a first part and an optimiser of each client.

    The step that a client takes late, with its next batch, must be scaled for the batch that it was
    for; another client's clipping in between must not reach it.
    """
    words = (
        "data.num_clients=3",
        "framework.mode=splitfed_v2",
        "rounds=1",
        "training.local_steps=4",
    )
    fed = split(hub, *words)
    plain = plain_model(fed)
    start = {name: p.detach().clone() for name, p in trained(plain).items()}
    recorder = Recorder(fed)
    run_rounds(fed, 1)
    turns = [c for c, request, _ in recorder.log if decode(request).verb == "forward"]
    assert turns != sorted(turns), "the clients' turns must be mixed for this test to tell"

    body = {n: nn.Parameter(t.clone()) for n, t in start.items() if not at_client(n, "two_part")}
    lr = fed.config.training.optimizer.lr
    body_optimizer = torch.optim.AdamW(body.values(), lr=lr, weight_decay=0.0)
    heads, optimizers, chunks = {}, {}, {}
    for index, client in enumerate(fed.clients):
        own = {n: nn.Parameter(t.clone()) for n, t in start.items() if at_client(n, "two_part")}
        heads[client.name] = own
        optimizers[client.name] = torch.optim.AdamW(own.values(), lr=lr, weight_decay=0.0)
        chunks[client.name] = client_batches(fed, index)
    for name in turns:
        both = {**heads[name], **body}
        loss = plain_loss(Called(plain, both), next(chunks[name]))
        body_optimizer.zero_grad()
        optimizers[name].zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(both.values(), CLIP)
        assert norm > CLIP, "every step must be clipped"
        body_optimizer.step()
        optimizers[name].step()
    total = sum(client.weight for client in fed.clients)
    expected: dict[str, torch.Tensor] = dict(body)
    for name in next(iter(heads.values())):
        shares = [(client.weight / total) * heads[client.name][name] for client in fed.clients]
        expected[name] = torch.stack(shares).sum(0)
    assert distance(dict(fed.server.state), expected) < EXACT["gpt2"]


class Called(nn.Module):
    """A module called with other parameters than its own."""

    def __init__(self, module: nn.Module, parameters: dict[str, nn.Parameter]) -> None:
        super().__init__()
        self.__dict__["_other"] = (module, parameters)

    def forward(self, **inputs: torch.Tensor) -> Any:
        module, parameters = self.__dict__["_other"]
        return torch.func.functional_call(module, parameters, kwargs=inputs)


def client_batches(fed: Experiment, index: int) -> Any:
    client = fed.clients[index]
    draw = generator(fed.config.seed, "batches", client.name, 1)
    return batches(client.examples, fed.config.training, draw)
