"""What saves memory and changes no result: blocks that run once more, batches in parts."""

from __future__ import annotations

from pathlib import Path

import pytest

import variants
from tiny import distance, experiment_config, perturb
from trillium.experiment.run import Experiment, build
from variants import Variant

CHECKPOINTS = "training.gradient_checkpointing=true"
MICRO = "training.micro_batch_size=3"
FAST = {"fedllm", "fedllm gradient", "kd llama, causal_lm", "split u, both, int8", "split v1"}
FAST |= {"split ahead", "split local rounds", "centralised", "local_only"}


def run_of(hub: Path, variant: Variant, *words: str) -> Experiment:
    own = (*variant.words, *words)
    fed = build(experiment_config(hub, *own, model=variant.model, task=variant.task))
    perturb(fed).run()
    return fed


def flops(fed: Experiment) -> tuple[float, float]:
    """Of the clients and of the server, in training."""
    entries = fed.fleet.ledger.entries
    clients = sum(entry.flops or 0 for entry in entries if entry.purpose == "train")
    return clients, fed.server.meter.read().flops


def trains(variant: Variant) -> bool:
    saves = any(
        word.startswith(("training.gradient", "training.micro", "training.auto", "training.cache"))
        for word in variant.words
    )
    return variant.framework != "zero_shot" and variant.repeats and not saves


def hold(one: Experiment, other: Experiment, most: float) -> None:
    """Expect the same of two runs, but for rounding."""
    assert distance(one.server.state, other.server.state) <= most
    for mine, theirs in zip(one.clients, other.clients, strict=True):
        if "tensors" in mine.store:
            assert distance(mine.store["tensors"], theirs.store["tensors"]) <= most
    for seen, found in zip(one.history, other.history, strict=True):
        for name in seen.keys() & {"loss", "train_loss", "distil_loss"}:
            assert found[name] == pytest.approx(seen[name], rel=most, abs=most)


@pytest.mark.parametrize(
    "variant", variants.cases(FAST, lambda v: trains(v) and v.framework != "fedkseed", every=6)
)
def test_blocks_that_run_again_give_the_same_to_the_last_bit(hub: Path, variant: Variant) -> None:
    """With dropout, too: the same random numbers are drawn again."""
    plain, again = (
        run_of(hub, variant, *variant.dropout, *words) for words in ((), (CHECKPOINTS,))
    )
    hold(plain, again, 0.0)
    pairs = zip(flops(plain), flops(again), strict=True)
    more = max(after / before for before, after in pairs if before)
    assert 1.01 < more < 1.6


@pytest.mark.parametrize(
    "variant", variants.cases({*FAST, "fedkseed", "split cache"}, trains, every=6)
)
def test_parts_of_a_batch_take_the_same_step(hub: Path, variant: Variant) -> None:
    """Each prediction weighs the same, however many of them its part of the batch has."""
    plain, parts = (run_of(hub, variant, *words) for words in ((), (MICRO,)))
    if "delta" in str(variant.words) or "wire" in str(variant.words):
        hold(plain, parts, 0.05)  # what is rounded at a border falls to another side
    else:
        hold(plain, parts, 1e-6)
    for one, other in zip(plain.fleet.ledger.entries, parts.fleet.ledger.entries, strict=True):
        assert (one.verb, one.bytes) == (other.verb, other.bytes)
