"""Plans of tiny runs beyond the contract: what depends on values, parts of a peak, what is written."""

from __future__ import annotations

from pathlib import Path

import pytest

import tiny
from papers import hold
from trillium.component import known
from trillium.config.experiment import experiment, parse_overrides
from trillium.data.publics.rows import Rows
from trillium.errors import UserError
from trillium.experiment.run import Experiment
from trillium.models.adapters import Adapter
from trillium.plan import rounds
from trillium.plan.data import Assumptions, assumed_texts
from trillium.plan.models import Models
from trillium.plan.phases import Known, PhaseMeter
from trillium.plan.predict import Prediction, predict
from trillium.plan.result import texts_of
from trillium.plan.written import writing
from variants import SPLIT


def planned(run: Experiment) -> Prediction:
    return predict(run.config, texts_of(run.config, run.server, run.clients))


@pytest.mark.parametrize("model", ["gpt2", "llama"])
def test_what_the_server_computes_to_write_the_public_set(hub: Path, model: str) -> None:
    public = "data.public={name: sampled, max_new_tokens: 20}"
    run = tiny.federation(hub, "framework=kd", public, model=model, task="causal_lm")
    models = Models()
    meter = PhaseMeter(models.paper, Known())
    flops, _ = writing(run.config, models.get(run.config, 0, None), models.paper, meter)
    measured = run.server.meter.read()  # of one batch, in which some text does not end early
    assert flops == measured.flops
    assert meter.read().peak_bytes == pytest.approx(measured.peak_bytes, rel=0.1)
    unseen = predict(run.config, assumed_texts(run.config, Assumptions(examples=14)))
    none = run.config.model_copy(
        update={"data": run.config.data.model_copy(update={"public": Rows()})}
    )
    others = predict(none, assumed_texts(none, Assumptions(examples=14)))
    assert unseen.server_flops == pytest.approx(others.server_flops + flops)


def test_a_codec_that_depends_on_values_has_a_range_that_holds(hub: Path) -> None:
    words = "wire={up: [{name: top_k}, zstd], down: [zstd]}"
    run = tiny.federation(hub, "framework=fedllm", words)
    plan = planned(run)
    run.run()
    for direction in ("up", "down"):
        traffic = getattr(plan.total, direction)
        measured = run.fleet.ledger.bytes_total(direction)
        assert traffic.low <= measured <= traffic.high
        assert traffic.low < traffic.high
    # Down goes what few entries have changed of: far from the noise that is taken as likely.
    assert plan.total.up.bytes == pytest.approx(run.fleet.ledger.bytes_total("up"), rel=0.02)


def test_doras_own_tensors_are_in_the_plan(hub: Path) -> None:
    hold(tiny.federation(hub, "framework=fedllm", "adapter.dora=true", task="causal_lm"))


@pytest.mark.parametrize("adapter", known(Adapter))
@pytest.mark.parametrize("task", ["classification", "causal_lm"])
def test_every_adapter_is_planned(hub: Path, task: str, adapter: str) -> None:
    model = "bert" if task == "classification" else "gpt2"
    hold(tiny.federation(hub, f"adapter={adapter}", "rounds=1", task=task, model=model))


def test_another_rank_is_not_what_was_planned(hub: Path) -> None:
    run = tiny.federation(hub, "framework=fedllm")
    plan = planned(tiny.federation(hub, "framework=fedllm", "adapter.r=4"))
    run.run()
    assert plan.total.up.bytes > 1.02 * run.fleet.ledger.bytes_total("up")


def test_a_peak_is_the_sum_of_its_parts(hub: Path) -> None:
    plan = planned(tiny.federation(hub, "framework=fedllm", "adapter=full"))
    for client, memory in plan.memory.items():
        assert memory.peak == plan.clients[client].peak_bytes
        assert memory.optimizer >= 2 * memory.gradients  # AdamW keeps two moments
        assert memory.gradients > 0


def test_a_tier_that_is_cut_elsewhere_holds_its_own_part(hub: Path) -> None:
    plan = planned(tiny.federation(hub, "framework=split", *SPLIT["cache, cuts"]))
    assert plan.memory["client-0"].weights < plan.memory["client-1"].weights
    for client, memory in plan.memory.items():
        assert min(vars(memory).values()) >= 0
        assert memory.peak == plan.clients[client].peak_bytes


@pytest.mark.parametrize(
    "words",
    [
        ["framework=fedllm", "fleet={clients_per_round: 2}"],
        ["framework=fedllm", "fleet={min_replies: 1, failure_rate: 0.1}"],
        ["framework={name: fedllm, mask: rolora}"],
        ["framework={name: fedkseed, num_seeds: 16}"],
        ["framework={name: kd, cache_rounds: 3}"],
        ["framework=split", "fleet={clients_per_round: 2}"],
    ],
    ids=" ".join,
)
def test_a_long_run_of_unlike_rounds_is_told_from_some_of_them(
    hub: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    common = ("rounds=14", "data.num_clients=3", "training.batch_size=8")
    run = tiny.federation(hub, *common, *words)
    whole = planned(run)
    assert whole.planned_rounds == 14
    assert not whole.estimate
    monkeypatch.setattr(rounds, "ROUNDS", 6)
    found = planned(run)
    assert 6 <= found.planned_rounds < 14
    assert f"after round {found.planned_rounds} is an estimate" in found.estimate
    for name, own in found.clients.items():
        for mine, theirs in (
            (own.up, whole.clients[name].up),
            (own.down, whole.clients[name].down),
        ):
            assert round(mine.messages, 6) == theirs.messages
            assert mine.bytes == pytest.approx(theirs.bytes, rel=0.05)
        assert own.flops == pytest.approx(whole.clients[name].flops, rel=0.05)


def test_a_long_run_with_many_messages_is_told_from_few_rounds(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "MESSAGES", 100)
    monkeypatch.setattr(rounds, "SAMPLE", 20)
    words = ("framework=fedllm", "rounds=12", "data.num_clients=12", "fleet.clients_per_round=6")
    plan = planned(tiny.federation(hub, *words))
    assert plan.planned_rounds == rounds.LEAST
    assert plan.total.up.messages == pytest.approx(12 * 6)
    assert {*plan.clients} == {*plan.later} == {*plan.memory}  # also who was asked only later


def test_a_run_that_would_end_early_is_not_planned_unless_it_goes_on() -> None:
    words = ["model.id=distilgpt2", "data.num_clients=2", "rounds=3", "training.batch_size=4"]
    words += ["fleet.failure_rate=0.9", "fleet.min_replies=1"]
    config = experiment(parse_overrides(words))
    texts = assumed_texts(config, Assumptions(examples=4, tokens=8))
    with pytest.raises(UserError, match="the run would end: round 1"):
        predict(config, texts)
    assert predict(experiment(parse_overrides([*words, "fleet.on_failure=skip"])), texts).total
