"""Plans of tiny runs beyond the contract: what depends on values, parts of a peak, what is written."""

from __future__ import annotations

from pathlib import Path

import pytest

import tiny
from trillium.data.publics.rows import Rows
from trillium.experiment.run import Experiment
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
