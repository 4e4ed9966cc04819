"""What saves memory and changes no result: blocks that run once more on the way back."""

from __future__ import annotations

from pathlib import Path

import pytest

import variants
from tiny import distance, experiment_config, perturb
from trillium.experiment.run import Experiment, build
from variants import Variant

CHECKPOINTS = "training.gradient_checkpointing=true"
FAST = {"fedllm", "fedllm gradient", "kd llama, causal_lm", "split u, both, int8", "split v1"}
FAST |= {"split ahead", "split local rounds", "centralised", "local_only"}


def run_of(hub: Path, variant: Variant, *words: str) -> Experiment:
    own = (*variant.dropout, *variant.words, *words)
    fed = build(experiment_config(hub, *own, model=variant.model, task=variant.task))
    perturb(fed).run()
    return fed


def flops(fed: Experiment) -> tuple[float, float]:
    """Of the clients and of the server, in training."""
    entries = fed.fleet.ledger.entries
    clients = sum(entry.flops or 0 for entry in entries if entry.purpose == "train")
    return clients, fed.server.meter.read().flops


def trains(variant: Variant) -> bool:
    return variant.framework not in ("zero_shot", "fedkseed") and variant.repeats


@pytest.mark.parametrize(
    "variant", variants.cases(FAST, lambda v: trains(v) and CHECKPOINTS not in v.words)
)
def test_blocks_that_run_again_give_the_same_to_the_last_bit(hub: Path, variant: Variant) -> None:
    """With dropout, too: the same random numbers are drawn again."""
    plain, again = run_of(hub, variant), run_of(hub, variant, CHECKPOINTS)
    assert distance(plain.server.state, again.server.state) == 0
    for one, other in zip(plain.clients, again.clients, strict=True):
        if "tensors" in one.store:
            assert distance(one.store["tensors"], other.store["tensors"]) == 0
    for seen, found in zip(plain.history, again.history, strict=True):
        assert seen.get("loss") == found.get("loss")
    more = [
        after / before for before, after in zip(flops(plain), flops(again), strict=True) if before
    ]
    assert max(more) > 1.01, "nothing has run again"
    assert max(more) < 1.6
