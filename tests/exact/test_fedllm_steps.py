"""Steps of FedLLM: corrections, learning rates, server optimisers; settings that cannot work."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fedllm_help import SGD, SKEWED, SMALL, crossed, numel, size

from tiny import (
    Recorder,
    distance,
    federation,
    perturb,
    plain_loss,
    round_batches,
    run_round,
    run_rounds,
)
from trillium.errors import UserError
from trillium.models.slots import values
from trillium.tasks import Example
from trillium.tasks.classification import Classification
from trillium.wire.kinds import Tensors

pytestmark = pytest.mark.usefixtures("uncounted")


def test_prox_adds_the_gradient_of_its_term(hub: Path) -> None:
    def final(*words: str) -> Tensors:
        fed = perturb(federation(hub, *SGD, "training.local_steps=3", *words))
        run_rounds(fed, 2)
        return values(fed.server.state)

    plain = final()
    assert distance(plain, final("framework.drift={name: prox, mu: 0}")) == 0.0
    fed = perturb(federation(hub, *SGD, "data.num_clients=1", "training.local_steps=2",
                             "framework.drift={name: prox, mu: 0.5}"))  # fmt: skip
    start = values(fed.server.state)
    run_rounds(fed, 1)
    alone = perturb(federation(hub, *SGD, "data.num_clients=1", "training.local_steps=2"))
    client = alone.clients[0]
    state = alone.model.state(start)
    module = alone.model.mount(state).train()
    optimizer = torch.optim.SGD(state.values(), lr=0.1)
    for chunk in round_batches(alone, 1):
        optimizer.zero_grad()
        far = sum((p - start[n]).square().sum() for n, p in state.items())
        (plain_loss(module, chunk) + 0.25 * far).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert client.name == "client-0"
    assert distance(fed.server.state, state) < 1e-12


def test_scaffold_is_federated_averaging_at_first_and_for_one_step(hub: Path) -> None:
    def final(rounds: int, *words: str) -> Tensors:
        fed = perturb(federation(hub, *SGD, SKEWED, *words))
        run_rounds(fed, rounds)
        return values(fed.server.state)

    scaffold, epochs = "framework.drift=scaffold", "training.local_epochs=2"
    assert distance(final(1, epochs), final(1, epochs, scaffold)) == 0.0
    assert distance(final(2, epochs), final(2, epochs, scaffold)) > 1e-6
    one = ("training.local_steps=1", "training.batch_size=64")
    # With one step of the whole data, c - c_k moves clients apart and their mean not at all.
    assert distance(final(2, *one), final(2, *one, scaffold)) < 1e-12


def test_scaffold_keeps_the_paper_s_variates(hub: Path) -> None:
    """`c_k - c + (x - y) / (K lr)` under plain SGD; and the server keeps their mean."""
    words = (*SGD, SKEWED, "training.local_steps=3", "framework.drift=scaffold")
    fed = perturb(federation(hub, *words))
    run_rounds(fed, 1)
    before = [dict(c.store["drift"]["own"]) for c in fed.clients]
    common = dict(fed.server.store["drift"]["common"])
    received, log = values(fed.server.state), Recorder(fed)
    run_round(fed, 2)
    replies = [m.expect("parameters", received) for _, m in crossed(log, fed, "up")]
    weights = [client.weight for client in fed.clients]
    for name in received:
        kept = []
        for client, own, update in zip(fed.clients, before, replies, strict=True):
            wanted = own[name] - common[name] - update[name] / (3 * 0.1)
            assert torch.allclose(client.store["drift"]["own"][name], wanted, atol=1e-10)
            kept.append(client.store["drift"]["own"][name])
        expected = sum(w * k for w, k in zip(weights, kept, strict=True)) / sum(weights)
        found = fed.server.store["drift"]["common"][name]
        assert torch.allclose(found, torch.as_tensor(expected), atol=1e-10)


def test_a_frozen_head_neither_moves_nor_travels(hub: Path) -> None:
    fed = federation(hub, "training.lr_factors={head: 0}", model="bert")
    log = Recorder(fed)
    run_rounds(fed, 2)
    head = [n for n in fed.model.initial if "modules_to_save" in n]
    assert all(torch.equal(fed.server.state[n], fed.model.initial[n]) for n in head)
    lora = numel(fed, "lora_")
    assert {size(m) for _, m in crossed(log, fed, "up")} == {lora}
    assert {size(m) for _, m in crossed(log, fed, "down")} == {0, lora}


def test_learning_rates_differ_by_tensor(hub: Path) -> None:
    """One step of SGD: the change is the factor times what it is without."""

    def change_of(*words: str) -> Tensors:
        fed = perturb(federation(hub, *SGD, "data.num_clients=1", "training.local_steps=1", *words))
        start = values(fed.server.state)
        run_rounds(fed, 1)
        return {n: fed.server.state[n].detach() - start[n] for n in start}

    plain, scaled = change_of(), change_of("training.lr_factors={head: 0.1, lora_B: 4}")
    for name, tensor in plain.items():
        factor = 0.1 if "score" in name else 4.0 if "lora_B" in name else 1.0
        assert torch.allclose(scaled[name], factor * tensor, atol=1e-14)


def test_logit_adjustment_is_the_log_of_the_class_frequencies(hub: Path) -> None:
    fed = federation(hub, "task={name: classification, logit_adjustment: 2.0}",
                     "data.partition={name: dirichlet, alpha: 0.3}")  # fmt: skip
    examples = fed.clients[0].examples
    found = fed.config.task.adjustment(examples)
    assert found is not None
    counts = torch.tensor([sum(int(e.labels) == k for e in examples) for k in range(3)])
    assert torch.allclose(found(torch.zeros(2, 3)), 2.0 * (counts / counts.sum()).log())
    moved = []
    for words in ((), ("task={name: classification, logit_adjustment: 2.0}",)):
        other = federation(hub, "data.partition={name: dirichlet, alpha: 0.3}", *words)
        run_rounds(other, 1)
        moved.append(values(other.server.state))
    assert distance(moved[0], moved[1]) > 1e-4


@pytest.mark.parametrize("labels", [[0, 0, 2, 0], [1, 1, 1, 1]])
def test_a_class_that_a_client_lacks_has_no_part_in_its_loss(labels: list[int]) -> None:
    """Of one class alone there is nothing to learn, and Adam, whatever its scale, takes no step."""
    task, targets = Classification(logit_adjustment=1.0), torch.tensor(labels)
    draw = torch.Generator().manual_seed(3)
    logits = torch.randn(4, 4, generator=draw, dtype=torch.float64).requires_grad_()
    examples = [Example(n, torch.ones(1).long(), label) for n, label in enumerate(targets)]
    loss, _ = task.loss(logits, targets, adjustment=task.adjustment(examples))
    (slope,) = torch.autograd.grad(loss, [logits])
    has = torch.unique(targets)
    shares = torch.tensor([float((targets == k).double().mean()) for k in has.tolist()])
    own = logits.detach()[:, has] + shares.log()
    wanted = -own.log_softmax(-1)[torch.arange(4), torch.searchsorted(has, targets)].sum()
    assert float(loss.detach()) == pytest.approx(float(wanted), abs=1e-7)
    lacking = [k for k in range(4) if k not in labels]
    assert torch.equal(slope[:, lacking], torch.zeros(4, len(lacking), dtype=torch.float64))
    assert bool(slope.any()) == (len(has) > 1)


def test_a_very_cautious_adam_steps_like_sgd(hub: Path) -> None:
    """`eps` far above all gradients: Adam's first step is proportional to SGD's, by `1 / eps`."""
    moved = []
    for words in (
        "{name: adam, lr: 1.0e9, eps: 1.0e9}",
        "{name: yogi, lr: 2.0e10, eps: 1.0e9}",
        None,
    ):
        option = () if words is None else (f"framework.server_optimizer={words}",)
        fed = perturb(federation(hub, *SGD, *option))
        start = values(fed.server.state)
        run_rounds(fed, 1)
        moved.append({n: p.detach() - start[n] for n, p in fed.server.state.items()})
    for name, step in moved[2].items():
        assert torch.allclose(moved[0][name], step, atol=1e-9)
        # Yogi starts at m = 0.1 g, uncorrected, and at sqrt(v) = eps, so that it divides by 2 eps.
        assert torch.allclose(moved[1][name], step, atol=1e-7)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("framework.aggregator=svd", "framework.upload=gradient"), "a gradient is not a factor"),
        (("framework.aggregator=fedex", "framework.server_optimizer=adam"), "needs a change"),
        (("framework.aggregator=stack", "adapter=full"), "factors of LoRA"),
        (("framework.aggregator=svd", "framework.local=[lora_B]"), "both factors"),
        (("framework.aggregator=stack", "framework.download=change"), "start anew"),
        ((SMALL,), "different ranks"),
        (("tiers={a: {rank: 9}}", "framework.aggregator=svd"), "cannot have more than it has"),
        (("tiers={a: {rank: 2}}", "adapter=full"), "no rank"),
        (("tiers={a: {layers: [0]}}", "framework.aggregator=median"), "whole updates"),
        (("tiers={a: {rank: 2}}", "framework=kd"), "only fedllm"),
        (("wire.up=[sign]", "framework.upload=parameters"), "values themselves cross"),
        (("wire.down=[{name: top_k, fraction: 0.1}]",), "values themselves cross"),
        (("framework.drift=scaffold", "framework.upload=gradient"), "cannot drift"),
        (("framework.aggregator=fedex",
          "tiers={a: {down: [{name: int8, kinds: [snapshot]}]}}"), "same on all sides"),
        (("framework.aggregator=svd", "adapter.dora=true"), "not the product"),
        (("framework.mask=ffa", "adapter=full"), "factors of LoRA"),
        (("framework.aggregator={name: krum, num_byzantine: 1}",), "it needs at least 5"),
        (("wire.up=[{name: int2, rounding: stochastic}]",), "would grow"),
        (("wire.down=[{name: int2, rounding: stochastic}]", "framework.download=change"),
         "carries it over"),
        (("framework.aggregator=fedex",
          "wire.down=[{name: cast, kinds: [snapshot]}]"), "same on all sides"),
    ],
)  # fmt: skip
def test_settings_that_contradict_each_other_are_refused(
    hub: Path, words: tuple[str, ...], why: str
) -> None:
    with pytest.raises(UserError) as caught:
        federation(hub, *words)
    assert why in caught.value.why
    assert caught.value.instead
