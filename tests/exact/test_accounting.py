"""The ledger = the bytes that crossed; FLOPs = PyTorch's own counter, and a formula."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from torch.utils.flop_counter import FlopCounterMode

from tiny import (
    CONFIGS,
    VOCABULARY,
    Recorder,
    federation,
    plain_model,
    public_set,
    round_batches,
    run_rounds,
    trained,
)
from trillium.experiment.run import Experiment
from trillium.frameworks.kd.distillation import predict
from trillium.tasks.batches import collate
from trillium.wire.message import decode

FRAMEWORKS = {
    "fedllm": (),
    "fedllm, codecs": ("framework=fedllm", "wire.up=[int8]", "wire.down=[cast]"),
    "kd": ("framework=kd",),
    "split": ("framework=split", "framework.shape=u", "wire.up=[cast]"),
}


def full_run(hub: Path, *words: str, **options: str) -> tuple[Experiment, Recorder]:
    fed = federation(hub, *words, **options)
    log = Recorder(fed)
    fed.run()
    return fed, log


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_booked_bytes_are_the_bytes_that_the_engine_carried(hub: Path, framework: str) -> None:
    fed, log = full_run(hub, *FRAMEWORKS[framework])
    entries = fed.fleet.ledger.entries
    carried: Counter[tuple[str, str, str]] = Counter()
    for client, request, reply in log.log:
        carried[client, decode(request).verb, "down"] += len(request)
        carried[client, decode(reply).verb, "up"] += len(reply)
    booked: Counter[tuple[str, str, str]] = Counter()
    for entry in entries:
        booked[entry.client, entry.verb, entry.direction] += entry.bytes
        assert sum(entry.kinds.values()) == entry.bytes
        assert all(count >= 0 for count in entry.kinds.values())
    assert booked == carried
    assert len(entries) == 2 * len(log.log)
    for direction in ("up", "down"):
        for purpose in ("train", "once", "evaluate"):
            total = sum(
                e.bytes for e in entries if (e.direction, e.purpose) == (direction, purpose)
            )
            assert fed.fleet.ledger.bytes_total(direction, purpose) == total


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_kinds_weigh_what_the_decoded_tensors_weigh(hub: Path, framework: str) -> None:
    fed, log = full_run(hub, *FRAMEWORKS[framework])
    up = [entry for entry in fed.fleet.ledger.entries if entry.direction == "up"]
    for entry, (_, _, reply) in zip(up, log.log, strict=True):
        weights: Counter[str] = Counter()
        for name, tensor in decode(reply).tensors.items():
            weights[name.split("/")[0]] += tensor.numel() * tensor.element_size()
        weights["control"] += len(reply) - sum(weights.values())
        assert dict(weights) == entry.kinds


def test_a_codec_is_seen_in_the_bytes_and_not_in_the_raw_bytes(hub: Path) -> None:
    plain, _ = full_run(hub, "model.dtype=float32")
    coded, _ = full_run(hub, "model.dtype=float32", "wire.up=[cast]")

    def sums(fed: Experiment) -> tuple[int, int]:
        up = [e for e in fed.fleet.ledger.entries if e.verb == "train" and e.direction == "up"]
        return sum(e.kinds["parameters"] for e in up), sum(e.bytes_raw for e in up)

    assert sums(coded)[0] * 2 == sums(plain)[0]  # float32 to bfloat16
    assert sums(coded)[1] == sums(plain)[1]


def test_looking_into_clients_counts_as_evaluation_only(hub: Path) -> None:
    fed, _ = full_run(hub, "framework=local_only")
    entries = fed.fleet.ledger.entries
    assert {e.purpose for e in entries if e.verb == "evaluate_own"} == {"evaluate"}
    assert {e.purpose for e in entries if e.verb != "evaluate_own"} == {"train"}
    looked = [e for e in entries if e.purpose == "evaluate" and e.direction == "up"]
    assert looked
    assert not any(e.flops for e in looked)


@pytest.mark.parametrize(("model", "task"), [("gpt2", "causal_lm"), ("bert", "classification")])
def test_flops_of_training_are_those_of_the_pytorch_counter(
    hub: Path, model: str, task: str
) -> None:
    # Eager attention: PyTorch's own counter knows nothing of the fused kernels of a CPU.
    fed = federation(hub, "model.attention=eager", model=model, task=task)
    plain = plain_model(fed)
    run_rounds(fed, 2)
    for number in (1, 2):
        for index, client in enumerate(fed.clients):
            with FlopCounterMode(display=False) as counter:
                for chunk in round_batches(fed, number, index):
                    batch = collate(chunk, 0, fed.model.device)
                    logits = plain(**batch.inputs).logits
                    loss, _ = fed.config.task.loss(logits, batch.labels)
                    loss.backward()  # type: ignore[no-untyped-call]
            (entry,) = [
                e
                for e in fed.fleet.ledger.entries
                if (e.round, e.client, e.direction) == (number, client.name, "up")
            ]
            assert entry.flops == pytest.approx(counter.get_total_flops(), rel=0.05)
            assert entry.peak_bytes is not None
            assert entry.peak_bytes > sum(p.nbytes for p in plain.parameters())


def test_flops_of_inference_are_those_of_the_formula(hub: Path) -> None:
    """Every weight meets every token once: 2 FLOPs; attention adds two products of its own."""
    fed = federation(hub, "framework=kd", "framework.direction=server", task="causal_lm")
    run_rounds(fed, 1)
    client, public = fed.clients[0], public_set(fed)
    plain = plain_model(fed).eval()
    batch = collate(public, 0, fed.model.device)
    tokens, length = batch.input_ids.numel(), batch.input_ids.shape[1]
    width, blocks = CONFIGS["gpt2"]["n_embd"], CONFIGS["gpt2"]["n_layer"]
    weights = sum(p.numel() for n, p in plain.named_parameters() if p.dim() == 2 and "wpe" not in n)
    assert weights > VOCABULARY * width
    by_hand = 2 * tokens * weights + blocks * 4 * tokens * length * width
    client.meter.reset()
    shape = (sum(client.task.num_targets(e) for e in public), client.model.num_classes)
    writer = client.wire.writer("teach", "logits/public", 1, shape, "up")
    predict(client.loop("another", client.model.state()), client.task, public, writer)
    assert client.meter.read().flops == pytest.approx(by_hand, rel=0.05)


def test_the_trainable_state_is_what_is_sent(hub: Path) -> None:
    fed, log = full_run(hub)
    weight = sum(p.nbytes for p in trained(plain_model(fed)).values())
    for entry in fed.fleet.ledger.entries:
        first = entry.round == 1 and entry.direction == "down"
        sent = 0 if first else weight  # all sides know how they start
        assert entry.kinds.get("parameters", 0) == sent
        assert 0 < entry.bytes - sent < 500  # one flat tensor, however many there are
    assert log.log
