"""Example-level privacy: gradients of each example, what a step and a head release, what leaves."""

from __future__ import annotations

import itertools
import math
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from papers import booked, on_paper
from resumed import dies_in, trained
from tiny import Recorder, experiment_config, federation
from trillium.errors import UserError
from trillium.experiment import run as run_room
from trillium.experiment.folder import RunFolder
from trillium.experiment.run import Experiment, build
from trillium.frameworks.fedllm.protocol import FedLLM
from trillium.privacy.account import FILE, Release, epsilon, read_account
from trillium.privacy.example import NoisySteps
from trillium.privacy.noise import GRID
from trillium.privacy.rows import rows_of
from trillium.tasks.batches import collate
from trillium.training.loop import task_objective

pytest.importorskip("dp_accounting")

STEPS = ("framework.weights=equal", "training.max_length=24", "training.local_steps=2")
NOISY = "privacy={name: example, noise: 0.7, clip: 0.5, population: 12}"
OPEN = "privacy={name: example, noise: 0, clip: 1e9, population: 10}"


def private(hub: Path, *words: str, **names: Any) -> Experiment:
    return federation(hub, *STEPS, *words, **names)


def own_gradients(fed: Experiment, state: dict[str, nn.Parameter]) -> list[dict[str, Tensor]]:
    """Return the gradient of each example's mean loss, one backward pass each."""
    client, found = fed.clients[0], []
    module = fed.model.mount(state).train()
    objective = task_objective(fed.config.task, client.examples)
    for example in client.examples[:6]:
        batch = collate([example], 0, fed.model.device)
        loss, count = objective(module, batch)
        (loss / count).backward()  # type: ignore[no-untyped-call]
        found.append({n: p.grad.clone() for n, p in state.items() if p.grad is not None})
        for parameter in state.values():
            parameter.grad = None
    return found


CASES = {
    "lora": ("bert", "classification", ()),
    "rslora in gpt2": ("gpt2", "classification", ()),
    "language model": ("gpt2", "causal_lm", ()),
    "checkpoints": ("gpt2", "causal_lm", ("training.gradient_checkpointing=true",)),
    "micro-batches": ("bert", "classification", ("training.micro_batch_size=2",)),
    "kept": ("bert", "classification", ("adapter.layers=[2]", "training.cache_frozen=true")),
    "dora": ("bert", "classification", ("adapter.dora=true",)),
    "ia3": ("bert", "classification", ("adapter=ia3",)),
    "full": ("gpt2", "classification", ("adapter=full",)),
    "bitfit": ("bert", "classification", ("adapter=bitfit",)),
    "prompt": ("bert", "classification", ("adapter={name: prompt, tokens: 3}",)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("clip", [0.05, 1e9])
def test_a_step_is_the_sum_of_bounded_gradients_of_each_example(
    hub: Path, case: str, clip: float
) -> None:
    """By hooks where only linear layers train, and one by one elsewhere: as a loop has them."""
    model, task, words = CASES[case]
    exact = 1e-8 if case == "prompt" else 1e-12  # PEFT holds prompts in float32
    fed = private(hub, NOISY, *words, model=model, task=task)
    client = fed.clients[0]
    state = client.model.state(client.initial)
    draw = torch.Generator().manual_seed(1)
    for (
        parameter
    ) in state.values():  # LoRA's B is zero at the start, and the gradient of A then too
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=draw, dtype=parameter.dtype)
    expected: dict[str, Tensor] = {}
    for own in own_gradients(fed, state):
        norm = math.sqrt(sum(float(g.square().sum()) for g in own.values()))
        for name, gradient in own.items():
            share = gradient * min(1.0, clip / norm) / 8
            expected[name] = expected[name] + share if name in expected else share
    client.steps = NoisySteps(clip, 0.0, 1.0, 8, client.secret)
    loop = client.loop("train", state)
    loop.module.train()
    assert loop.are_linear == (
        case in ("lora", "rslora in gpt2", "language model", "checkpoints", "micro-batches", "kept")
    )
    objective = task_objective(fed.config.task, client.examples)
    loop._private_gradient(loop._parts(client.examples[:6]), objective, client.steps, 0)
    for name, parameter in state.items():
        wanted = expected.get(name, torch.zeros_like(parameter))
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, wanted, rtol=1e-10, atol=exact), name


def test_rows_add_up_to_the_gradient(hub: Path) -> None:
    fed = private(hub, NOISY, model="bert")
    client = fed.clients[0]
    state = client.model.state(client.initial)
    module = fed.model.mount(state).train()
    batch = collate(client.examples[:5], 0, fed.model.device)
    with rows_of(module, state) as rows:
        loss, _ = task_objective(fed.config.task, client.examples)(module, batch)
        loss.backward()  # type: ignore[no-untyped-call]
    for name, parameter in state.items():
        assert rows[name].shape == (5, *parameter.shape)
        assert torch.allclose(rows[name].sum(0), parameter.grad, atol=1e-12)  # type: ignore[arg-type]
    assert not any(module._forward_hooks for module in module.modules())


def test_without_noise_bound_and_coins_it_is_the_open_run(hub: Path) -> None:
    words = ("training.batch_size=10", "training.local_steps=2")
    hidden, plain = private(hub, OPEN, *words), private(hub, *words)
    assert {len(client.examples) for client in plain.clients} == {10}
    hidden.run(), plain.run()
    for name, tensor in trained(plain).items():
        assert torch.allclose(trained(hidden)[name], tensor, rtol=0, atol=1e-9)
    assert hidden.history[-1]["epsilon"] is None


def steps_with(noise: float, seed: int = 0, clip: float = 2.0) -> NoisySteps:
    return NoisySteps(clip, noise, 0.3, 8, lambda purpose: f"{purpose} {seed}".encode()[:32])


def test_one_example_more_changes_the_sum_by_the_bound_at_most() -> None:
    steps, state = steps_with(1.5), {"a": nn.Parameter(torch.zeros(40, dtype=torch.float64))}
    rows = 100 * torch.randn(9, 40, dtype=torch.float64)
    totals = list[Tensor]()

    def noted(total: Tensor, deviation: float, key: bytes) -> Tensor:
        totals.append(total)
        return total.double()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trillium.privacy.example.released", noted)
        for count in range(1, 10):
            steps.gradient([{"a": rows[:count]}], state, 0)
    for less, more in itertools.pairwise(totals):
        change = float((more - less).double().norm()) * steps.noise * steps.clip / GRID
        assert 1.9 < change <= 2.0


def test_the_noise_of_a_step_is_that_of_the_bound_over_a_public_number() -> None:
    state = {"a": nn.Parameter(torch.zeros(40_000))}
    seen = []
    for size, step in ((0, 0), (1, 0), (7, 0), (7, 1)):
        parts = [{"a": torch.zeros(size, 40_000)}] if size else []
        steps_with(1.5).gradient(parts, state, step)
        assert state["a"].grad is not None
        assert float(state["a"].grad.std()) == pytest.approx(1.5 * 2.0 / 8, rel=0.02)
        seen.append(state["a"].grad.clone())
    assert abs(float(torch.corrcoef(torch.stack([seen[2], seen[3]]))[0, 1])) < 0.03
    steps_with(1.5, seed=1).gradient([], state, 0)
    last = state["a"].grad
    assert last is not None
    assert abs(float(torch.corrcoef(torch.stack([seen[0], last]))[0, 1])) < 0.03


def test_batches_are_drawn_by_a_secret_coin_for_each_example() -> None:
    drawn = list(steps_with(1.0).batches(range(20), 500))
    sizes = torch.tensor([float(len(batch)) for batch in drawn])
    assert float(sizes.mean()) == pytest.approx(6.0, abs=0.4)
    assert float(sizes.var()) == pytest.approx(20 * 0.3 * 0.7, rel=0.3)
    assert drawn != list(steps_with(1.0, seed=1).batches(range(20), 500))
    assert drawn == list(steps_with(1.0).batches(range(20), 500))  # as in a run that is resumed


def test_sums_of_rows_bear_noise_of_one_row() -> None:
    rows = nn.functional.normalize(torch.randn(30, 6, dtype=torch.float64), dim=1)
    groups = torch.arange(30) % 3
    exact = torch.stack([rows[groups == g].sum(0) for g in range(3)])
    assert torch.allclose(steps_with(0.0).sums(rows, groups, 3, 1.25), exact)
    noisy = torch.stack([steps_with(0.8, s).sums(rows, groups, 3, 1.25) for s in range(400)])
    assert float((noisy - exact).std()) == pytest.approx(0.8 * 1.25, rel=0.03)


def test_a_reply_is_a_closed_list_of_one_length(hub: Path) -> None:
    run = private(hub, NOISY, "data.partition={name: size_skewed, power: 2.0}", "head=class_sums")
    assert len({len(client.examples) for client in run.clients}) > 1
    log = Recorder(run)
    run.run()
    lengths: dict[str, set[int]] = {}
    for _, _, reply in log.log:
        message = run.fleet.wire.unpack(reply, "up").message
        lengths.setdefault(message.verb, set()).add(len(reply))
        assert {*message.tensors} <= {"parameters/flat", "statistics/sums", "control/cost"}
        assert message.tensors["control/cost"][:3].tolist() == [0, 0, 0]
    assert {verb: len(found) for verb, found in lengths.items()} == {
        "class_sums": 1,
        "use_head": 1,
        "train": 1,
    }


def test_steps_and_head_share_what_may_be_spent(hub: Path) -> None:
    words = "privacy={name: example, epsilon: 3, population: 12}"
    run = private(hub, words, "head=class_sums", "rounds=2")
    run.run()
    last = run.history[-1]
    assert 2.99 <= last["epsilon"] <= 3
    noise = last["noise_over_clip"]
    parts = [Release(1.25 * noise), Release(noise, 8 / 12, 4)]
    assert last["epsilon"] == epsilon(parts, 1e-5)
    assert "train_loss" not in last


@pytest.mark.parametrize("words", [(NOISY,), (NOISY, "head=class_sums", "wire.up=[int8]")])
def test_a_plan_has_the_bytes_of_the_ledger(hub: Path, words: tuple[str, ...]) -> None:
    run = private(hub, *words, model="bert")
    paper = on_paper(run)
    run.run()
    told, found = booked(paper.course.entries), booked(run.fleet.ledger.entries)
    assert told == found
    assert sum(entry.flops or 0 for entry in paper.course.entries) > 0


REFUSED = {
    "framework=kd": "not a sum",
    "framework=fedkseed": "not a sum",
    "framework.weights=examples": "how much data each client has",
    "framework.drift=scaffold": "control variates are gradients",
    "framework.upload=gradient": "where a client takes a step",
    "privacy.population=null": "a number that everybody may know",
    "privacy.population=7": "more cannot be drawn",
    "training.local_steps=null": "how many steps there are would follow",
    "tiers={a: {clients: [client-0], local_steps: 1}}": "counted for all clients alike",
    "task.logit_adjustment=1": "the labels of all others",
    "head=class_means": "those of a client's own data",
    "wire.up=[top_k]": "how many bytes it writes",
}


@pytest.mark.parametrize("word", REFUSED)
def test_what_would_break_the_guarantee_is_refused(hub: Path, word: str) -> None:
    steps = STEPS if not word.startswith("framework=") else STEPS[1:]
    with pytest.raises(UserError, match=REFUSED[word]):
        experiment_config(hub, NOISY, *steps, word)


def test_a_head_of_class_sums_is_the_nearest_class_by_direction(hub: Path) -> None:
    """In an open run it is exact, whatever the partition; public texts standardise the features."""
    words = ("framework=zero_shot", "head=class_sums")
    one, three = (federation(hub, *words, f"data.num_clients={n}", model="bert") for n in (1, 3))
    one.run(), three.run()
    heads = [fed.server.store["head"] for fed in (one, three)]
    for name in heads[0]:
        assert torch.allclose(heads[0][name], heads[1][name], atol=1e-12)
    assert one.history[-1]["accuracy"] > 0.6  # of three classes


def test_a_resumed_run_draws_the_same_coins_and_noise(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A round that runs again releases nothing new, and is counted all the same."""
    config, numbers = experiment_config(hub, *STEPS, NOISY, "rounds=2"), count()
    monkeypatch.setattr(run_room, "new_secret", lambda: next(numbers).to_bytes(32, "big").hex())
    whole = build(config)
    whole.run()
    numbers = count()
    dies_in(build(config, RunFolder(tmp_path / "cut", "cut")), FedLLM, "_step")
    again = build(config, RunFolder.reopen(tmp_path / "cut"))
    again.run()
    assert all(torch.equal(t, trained(again)[n]) for n, t in trained(whole).items())
    assert [line["round"] for line in read_account(tmp_path / "cut" / FILE)] == [1, 1, 2]
