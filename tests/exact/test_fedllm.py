"""FedLLM = plain PEFT training with one client, one centralised step with several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tiny import (
    EXACT,
    Recorder,
    digest,
    distance,
    federation,
    perturb,
    plain_batch,
    plain_loss,
    plain_model,
    plain_steps,
    round_batches,
    run_rounds,
    trained,
)
from trillium.federation.means import Contribution
from trillium.frameworks.fedllm.aggregators import Aggregate, Aggregator
from trillium.models.factors import Factors
from trillium.wire.kinds import Tensors
from trillium.wire.message import decode

CASES = [("bert", "classification"), ("gpt2", "classification"), ("gpt2", "causal_lm"),
         ("llama", "causal_lm")]  # fmt: skip
ONE_STEP = (
    "training.optimizer={name: sgd, lr: 0.1}",
    "training.batch_size=64",
    "training.max_grad_norm=null",
    "data.partition={name: size_skewed, power: 1.0}",
)


class Unweighted(Aggregator):
    """The mistake to tell apart: every client counts the same."""

    def aggregate(
        self, contributions: Sequence[Contribution], like: Tensors, factors: Sequence[Factors]
    ) -> Aggregate:
        return Aggregate(
            {n: torch.stack([c.tensors[n] for c in contributions]).mean(0) for n in like}
        )


@pytest.mark.parametrize(("model", "task"), CASES)
def test_one_client_is_plain_peft_training(hub: Path, model: str, task: str) -> None:
    fed = perturb(
        federation(
            hub,
            "data.num_clients=1",
            "rounds=3",
            "training.local_epochs=2",
            "training.schedule=linear",
            "training.warmup=0.25",
            "training.weight_decay=0.1",
            "training.max_grad_norm=0.5",
            model=model,
            task=task,
        )
    )
    plain = plain_model(fed)
    start = {name: p.detach().clone() for name, p in trained(plain).items()}
    figures = run_rounds(fed, 3)
    for number, figure in enumerate(figures):
        optimizer = torch.optim.AdamW(trained(plain).values(), lr=0.01, weight_decay=0.1)
        chunks = round_batches(fed, number + 1)
        losses, sizes = [], []
        for step, chunk in enumerate(chunks):
            progress = (number + step / len(chunks)) / 3
            factor = progress / 0.25 if progress < 0.25 else (1 - progress) / 0.75
            optimizer.param_groups[0]["lr"] = 0.01 * factor
            losses += plain_steps(plain, [chunk], optimizer, clip=0.5)
            sizes.append(sum(fed.config.task.num_targets(example) for example in chunk))
        mean = sum(a * b for a, b in zip(losses, sizes, strict=True)) / sum(sizes)
        assert figure["train_loss"] == pytest.approx(mean, abs=EXACT[model])
    assert distance(fed.server.state, trained(plain)) < EXACT[model]
    assert distance(fed.server.state, start) > 1e-2


@pytest.mark.parametrize(("clip", "decay"), [("null", 0.0), ("0.5", 0.1)])
def test_another_loop_is_told_apart(hub: Path, clip: str, decay: float) -> None:
    """The comparison above sees a missing clip and a default weight decay."""
    fed = perturb(federation(hub, "data.num_clients=1", f"training.max_grad_norm={clip}"))
    plain = plain_model(fed)
    run_rounds(fed, 1)
    optimizer = torch.optim.AdamW(trained(plain).values(), lr=0.01, weight_decay=decay)
    plain_steps(plain, round_batches(fed, 1), optimizer, clip=0.5)
    assert distance(fed.server.state, trained(plain)) > 1e-6


@pytest.mark.parametrize(
    ("model", "task", "upload"),
    [(*case, "update") for case in CASES]
    + [(*case, upload) for case in CASES[1:3] for upload in ("parameters", "gradient")],
)
def test_one_step_of_unequal_clients_is_one_step_on_the_union(
    hub: Path, model: str, task: str, upload: str
) -> None:
    words = (*ONE_STEP, f"framework.upload={upload}")
    fed = perturb(federation(hub, *words, model=model, task=task))
    assert len({len(client.examples) for client in fed.clients}) == 3
    plain = plain_model(fed)
    union = [example for client in fed.clients for example in client.examples]
    optimizer = torch.optim.SGD(trained(plain).values(), lr=0.1)
    plain_steps(plain, [union], optimizer)
    run_rounds(fed, 1)
    assert distance(fed.server.state, trained(plain)) < EXACT[model]

    wrong = perturb(federation(hub, *words, model=model, task=task))
    framework = wrong.config.framework.model_copy(update={"aggregator": Unweighted()})
    wrong.config = wrong.config.model_copy(update={"framework": framework})
    run_rounds(wrong, 1)
    assert distance(wrong.server.state, trained(plain)) > 1e-4


def test_causal_lm_weights_are_supervised_tokens(hub: Path) -> None:
    fed = federation(hub, *ONE_STEP, task="causal_lm")
    for client in fed.clients:
        tokens = sum(int((e.labels[1:] != -100).sum()) for e in client.examples)
        assert client.weight == tokens != len(client.examples)


def test_loss_is_that_of_hugging_face(hub: Path) -> None:
    fed = perturb(federation(hub, "model.dtype=float32", task="causal_lm", model="llama"))
    plain = plain_model(fed)
    inputs, labels = plain_batch(fed.clients[0].examples)
    with torch.no_grad():
        theirs = plain(**inputs, labels=labels).loss
        ours = plain_loss(plain, fed.clients[0].examples)
    assert float(theirs) == pytest.approx(float(ours), 1e-5)


def test_the_next_model_is_the_weighted_mean_of_what_clients_reached(hub: Path) -> None:
    fed = perturb(federation(hub, "data.partition={name: size_skewed, power: 1.0}"))
    log = Recorder(fed)
    run_rounds(fed, 1)
    replies = [decode(reply) for _, _, reply in log.log]
    weights = [float(reply.tensors["control/weight"]) for reply in replies]
    assert weights == [float(len(client.examples)) for client in fed.clients]
    for name, start in fed.model.initial.items():
        reached = [start + reply.expect("parameters", fed.model.initial)[name] for reply in replies]
        weighted = [w * x for w, x in zip(weights, reached, strict=True)]
        mean = torch.stack(weighted).sum(0) / sum(weights)
        assert torch.allclose(fed.server.state[name], mean, atol=1e-14, rtol=0)


def test_server_sgd_with_rate_one_is_federated_averaging(hub: Path) -> None:
    def final(*words: str) -> dict[str, Any]:
        fed = perturb(federation(hub, *words))
        run_rounds(fed, 2)
        return fed.server.state

    plain = final()
    option = "framework.server_optimizer={{name: sgd, lr: {}, momentum: {}}}"
    assert distance(plain, final(option.format(1.0, 0.0))) == 0.0
    assert distance(plain, final(option.format(1.0, 0.9))) > 1e-6
    assert distance(plain, final(option.format(0.5, 0.0))) > 1e-6


@pytest.mark.parametrize(("model", "head"), [("gpt2", "score"), ("bert", "classifier")])
def test_the_task_head_is_exchanged(hub: Path, model: str, head: str) -> None:
    fed = federation(hub, model=model)
    log = Recorder(fed)
    run_rounds(fed, 1)
    for _, request, reply in log.log:
        up = decode(reply).expect("parameters", fed.model.initial)
        assert not decode(request).group("parameters")  # all sides know how they start
        heads = [name for name in up if head in name]
        assert heads
        assert all(float(up[name].abs().max()) > 0 for name in heads)


def test_random_numbers_do_not_depend_on_the_order_of_clients(hub: Path) -> None:
    def replies(backwards: bool) -> tuple[dict[str, str], Any]:
        fed = federation(hub, "model.dropout=0.3", "adapter.dropout=0.2")
        engine: Any = fed.fleet.engine
        if backwards:
            carry = engine.carry
            engine.carry = lambda asks: carry(dict(reversed(asks.items())))
        log = Recorder(fed)
        run_rounds(fed, 2)
        assert [name for name, _, _ in log.log][:3] == sorted(fed.fleet.asked, reverse=backwards)
        hashes = {f"{at // 3} {name}": digest(reply) for at, (name, _, reply) in enumerate(log.log)}
        return hashes, fed.server.state

    forward, backward = replies(False), replies(True)
    assert forward[0] == backward[0]
    assert distance(forward[1], backward[1]) == 0.0


def test_dropout_is_on_in_training(hub: Path) -> None:
    def final(rate: float) -> dict[str, Any]:
        fed = federation(hub, f"model.dropout={rate}")
        run_rounds(fed, 1)
        return fed.server.state

    assert distance(final(0.0), final(0.3)) > 1e-6
