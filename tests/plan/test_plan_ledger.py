"""The plan against the ledger: bytes to the byte, FLOPs within 5 %, peak memory within 20 %."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from plan_help import close, plan_and_run

import tiny
from trillium.data.publics.rows import Rows
from trillium.plan.data import Assumptions, assumed_texts
from trillium.plan.federation import Federation
from trillium.plan.held import Held
from trillium.plan.predict import predict
from trillium.plan.result import texts_of
from trillium.plan.written import writing

INT8 = "wire={up: [int8], down: [cast]}"
FEDLLM = {
    "update": [],
    "full": ["adapter=full", INT8],
    "parameters of a cohort": [
        "framework.upload=parameters",
        "fleet.clients_per_round=2",
        "rounds=3",
    ],
    "gradient": ["framework.upload=gradient", "rounds=3", INT8],
    "change, turns": ["framework={download: change, mask: rolora}", "rounds=3", INT8],
    "scaffold": ["framework.drift=scaffold", "framework.mask=ffa"],
    "ia3": ["adapter={name: ia3}", "wire={up: [int4]}"],
    "failures": ["fleet={failure_rate: 0.4, min_replies: 1}", "rounds=4"],
    "tiers": [
        "tiers={small: {clients: [client-0], rank: 1, local_steps: 2}}",
        "framework.aggregator=hetlora",
    ],
}
KSEED = {
    "lora": ["rounds=4", "fleet={failure_rate: 0.4, min_replies: 1}"],
    "few seeds, all parameters": ["adapter=full", "framework.num_seeds=12", "rounds=3"],
    "frozen factors": ["training.lr_factors={lora_A: 0}", "framework.num_seeds=64"],
}
_RANKS = "tiers={small: {clients: [client-0], rank: 1}}"
FOLDS = {
    "stack": ["framework.aggregator=stack", "rounds=3"],
    "stack of a cohort": [
        *("framework.aggregator=stack", "fleet.clients_per_round=2", "rounds=5", INT8, _RANKS)
    ],
    "stack, failures": [
        *("framework.aggregator=stack", "fleet={failure_rate: 0.4, min_replies: 1}", "rounds=5")
    ],
    "fedex": ["framework.aggregator=fedex", "rounds=3"],
    "fedex, one step": ["framework.aggregator=fedex", "rounds=3", "training.local_steps=1"],
    "fedex of rank 2": ["framework.aggregator={name: fedex, rank: 2}"],
    "rest of svd": ["framework.aggregator={name: svd, fold_rest: true}", "rounds=3"],
    "rest of svd, ranks": [
        *("framework.aggregator={name: svd, fold_rest: true}", _RANKS, "training.local_steps=1")
    ],
    "svd": ["framework.aggregator=svd", "training.local_steps=1", "rounds=3"],
    "rolora": ["framework={aggregator: fedex, mask: rolora}", "rounds=3"],
}
KD = {
    "both": [],
    "server": ["framework.direction=server", "framework.ensemble=class_counts"],
    "cache": ["framework={cache_rounds: 2, public_per_round: 7}", "rounds=4"],
    "top classes": ["wire={up: [{name: top_classes, k: 2}], down: [log_probabilities]}"],
    "client": ["framework.direction=client", "head=class_means"],
    "labels, int8": [
        "framework={public_labels: true, distill_epochs: 2}",
        "wire={up: [int8], down: [cast]}",
    ],
    "other models": [
        "tiers={wide: {clients: [client-0], adapter: {r: 5}}, slow: {clients: [client-1]}}",
        "server.adapter.r=2",
        "head=ridge",
    ],
    "words": ["data.public={name: words, longest: 9, shortest: 3}"],
}
SPLIT = {
    "coalesced": [],
    "u": ["framework={shape: u, train: both}", "wire={up: [int8], down: [int8]}"],
    "v1": ["framework.mode=splitfed_v1", "fleet.clients_per_round=2"],
    "v2 of the server": ["framework={mode: splitfed_v2, train: server, cache: false}"],
    "kept, u": [
        "framework={shape: u, train: server}",
        "fleet={failure_rate: 0.4, min_replies: 1}",
        "rounds=4",
        INT8,
    ],
    "kept, u, relay": ["framework={shape: u, train: server, mode: relay, tail: 2}"],
    "kept, v1": ["framework={mode: splitfed_v1, train: server}", "fleet.clients_per_round=2"],
    "kept, v2, cuts": [
        "framework={mode: splitfed_v2, train: server, cut: 2}",
        "tiers={small: {clients: [client-0], cut: 1}}",
    ],
    "kept, u, cuts": [
        "framework={shape: u, train: server, cut: 2}",
        "tiers={small: {clients: [client-0], cut: 1}}",
    ],
    "kept, u, local rounds": ["framework={shape: u, train: server, local_rounds: 1}", "rounds=3"],
    "relay": ["framework.mode=relay", "training.local_steps=2"],
    "cache": ["framework.train=server", "head=class_means", "wire={up: [int4], down: [cast]}"],
    "cache of a cohort": ["framework.train=server", "fleet.clients_per_round=2", "rounds=3"],
    "cache, failures": [
        "framework.train=server",
        "fleet={failure_rate: 0.4, min_replies: 1}",
        "rounds=3",
    ],
    "cuts": ["framework={train: server, cut: 2}", "tiers={small: {clients: [client-0], cut: 1}}"],
    "local rounds": ["framework={train: server, local_rounds: 1}", "rounds=3"],
    "delta": ["framework={delta: {feedback: 0.5}}", "wire={up: [int4], down: [int8]}"],
    "ahead": ["framework.staleness=1"],
    "ahead, u, adam": ["framework={staleness: 1, shape: u, cut: 2}", "data.num_clients=2"],
    "ahead, turns": ["framework={staleness: 1, mode: splitfed_v2}", "data.num_clients=2"],
    "ahead, one batch": ["framework={staleness: 1, train: client}", "training.local_steps=1"],
    "ahead, relay": [
        "framework={staleness: 1, mode: relay, shape: u, train: server, cache: false}"
    ],
    "ahead, full": ["framework={staleness: 1, cut: 2}", "adapter=full"],
    "dropout": ["framework.train=server", "model.dropout=0.1", "framework.defence=gaussian"],
}
HEADS = {
    "class means": ["head=class_means", "wire={up: [{name: cast, kinds: [statistics]}]}"],
    "ridge": ["head=ridge"],
    "projected": ["head={name: ridge, project: 5}"],
}


QUICK = {
    *("stack of a cohort", "fedex", "rest of svd, ranks", "rolora"),
    "few seeds, all parameters",
    *("full", "change, turns", "failures", "tiers"),
    *("cache", "client", "other models", "labels, int8"),
    *(
        "kept, u",
        "kept, v1",
        "u",
        "v1",
        "cache, failures",
        "cuts",
        "local rounds",
        "delta",
        "ahead",
    ),
    *("projected", "kd-llama-causal_lm", "split-gpt2-causal_lm"),
}
"""Cases that every run of the tests holds to the ledger; the others are `slow`."""


def cases(words: dict[str, list[str]]) -> list[Any]:
    """The cases of a table, by their names."""
    return [
        pytest.param(found, id=name, marks=[] if name in QUICK else pytest.mark.slow)
        for name, found in words.items()
    ]


def check(found: Held) -> None:
    for direction in ("up", "down"):
        traffic = getattr(found.plan.total, direction)
        assert dict(traffic.kinds) == found.kinds(direction)
        assert traffic.bytes == found.bytes(direction)
    assert found.plan.total.once.bytes == found.bytes("up", "once") + found.bytes("down", "once")
    for client, sums in found.plan.clients.items():
        if measured := found.flops(client):
            assert close(sums.flops, measured, 0.05), client
            assert close(sums.peak_bytes, found.peak(client), 0.20), client
    server = found.run.server.meter.read()
    assert close(found.plan.server_flops, server.flops, 0.05)
    assert close(found.plan.server_peak_bytes, server.peak_bytes, 0.20)


@pytest.mark.parametrize("words", cases(FEDLLM))
def test_fedllm(hub: Path, words: list[str]) -> None:
    check(plan_and_run(hub, "framework=fedllm", *words))


@pytest.mark.parametrize("words", cases(FOLDS))
def test_folds_into_the_base(hub: Path, words: list[str]) -> None:
    check(plan_and_run(hub, "framework=fedllm", *words))


@pytest.mark.parametrize("words", cases(KSEED))
def test_fedkseed(hub: Path, words: list[str]) -> None:
    check(plan_and_run(hub, "framework=fedkseed", *words))


@pytest.mark.parametrize("words", cases(KD))
def test_kd(hub: Path, words: list[str]) -> None:
    check(plan_and_run(hub, "framework=kd", *words))


@pytest.mark.parametrize("model", ["gpt2", "llama"])
def test_what_the_server_computes_to_write_the_public_set(hub: Path, model: str) -> None:
    public = "data.public={name: sampled, max_new_tokens: 20}"
    run = tiny.federation(hub, "framework=kd", public, model=model, task="causal_lm")
    texts = texts_of(run.config, run.server, run.clients)
    work = writing(Federation(run.config, texts))
    measured = run.server.meter.read()  # of one batch, in which some text does not end early
    assert work.flops == measured.flops
    assert close(work.peak_bytes, measured.peak_bytes, 0.1)
    unseen = predict(run.config, assumed_texts(run.config, Assumptions(examples=14)))
    none = run.config.model_copy(
        update={"data": run.config.data.model_copy(update={"public": Rows()})}
    )
    others = predict(none, assumed_texts(none, Assumptions(examples=14)))
    assert unseen.server_flops == pytest.approx(others.server_flops + work.flops)


@pytest.mark.parametrize("words", cases(HEADS))
@pytest.mark.parametrize("model", ["bert"])
def test_heads(hub: Path, words: list[str], model: str) -> None:
    check(plan_and_run(hub, "framework=fedllm", *words, model=model))


@pytest.mark.parametrize("words", cases(SPLIT))
def test_split(hub: Path, words: list[str]) -> None:
    check(plan_and_run(hub, "framework=split", *words))


@pytest.mark.slow
@pytest.mark.parametrize("framework", ["zero_shot", "local_only", "centralised"])
def test_baselines(hub: Path, framework: str) -> None:
    check(plan_and_run(hub, f"framework={framework}"))


MODELS = {
    f"{framework}-{model}-{task}": [framework, model, task]
    for framework in ("fedllm", "kd", "split")
    for model, task in (("llama", "causal_lm"), ("bert", "classification"), ("gpt2", "causal_lm"))
}


@pytest.mark.parametrize("case", cases(MODELS))
def test_models_and_tasks(hub: Path, case: list[str]) -> None:
    framework, model, task = case
    words = [f"framework={framework}", "rounds=1", "data.num_clients=2"]
    check(plan_and_run(hub, *words, model=model, task=task))


def test_a_codec_that_depends_on_values_has_a_range_that_holds(hub: Path) -> None:
    found = plan_and_run(hub, "framework=fedllm", "wire={up: [{name: top_k}, zstd], down: [zstd]}")
    for direction in ("up", "down"):
        traffic = getattr(found.plan.total, direction)
        assert traffic.low <= found.bytes(direction) <= traffic.high
        assert traffic.low < traffic.high
    # Down goes what few entries have changed of: far from the noise that is taken as likely.
    assert close(found.plan.total.up.bytes, found.bytes("up"), 0.02)


def test_another_rank_is_not_what_was_planned(hub: Path) -> None:
    run = tiny.federation(hub, "framework=fedllm")
    other = tiny.federation(hub, "framework=fedllm", "adapter.r=4")
    plan = predict(other.config, texts_of(other.config, other.server, other.clients))
    run.run()
    assert not close(plan.total.up.bytes, run.fleet.ledger.bytes_total("up"), 0.02)


def test_a_peak_is_the_sum_of_its_parts(hub: Path) -> None:
    run = tiny.federation(hub, "framework=fedllm", "adapter=full")
    plan = predict(run.config, texts_of(run.config, run.server, run.clients))
    for client, memory in plan.memory.items():
        assert memory.peak == plan.clients[client].peak_bytes
        assert memory.optimizer >= 2 * memory.gradients  # AdamW keeps two moments


def test_a_tier_that_is_cut_elsewhere_holds_its_own_part(hub: Path) -> None:
    run = tiny.federation(hub, "framework=split", *SPLIT["cuts"])
    plan = predict(run.config, texts_of(run.config, run.server, run.clients))
    assert plan.memory["client-0"].weights < plan.memory["client-1"].weights
    for client, memory in plan.memory.items():
        assert min(vars(memory).values()) >= 0
        assert memory.peak == plan.clients[client].peak_bytes
