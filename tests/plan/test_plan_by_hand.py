"""A plan against sums done by hand: GPT-2 small, 77 classes, 3,334 examples of 64 tokens, one epoch."""

from __future__ import annotations

import pytest

from trillium.config.experiment import parse_overrides
from trillium.plan.arms import Arm, arms_of, plan_arms
from trillium.plan.models import Models
from trillium.plan.planning import planning_of

BLOCKS, WIDTH, LENGTH, CLASSES, EXAMPLES, PUBLIC, RANK = 12, 768, 64, 77, 3334, 1000, 8

# FLOPs of one example. A product with an (m, n) matrix takes 2 m n for a token; training all takes it
# three times, training behind frozen weights twice.
BLOCK = 2 * 12 * WIDTH**2 * LENGTH  # the four matrices of a block
ATTENTION = 4 * WIDTH * LENGTH**2  # forward in a block; backward twice that
HEAD = 2 * WIDTH * CLASSES * LENGTH  # GPT-2 applies it to every token
LORA = 2 * RANK * (WIDTH + 3 * WIDTH) * LENGTH  # in a block, on c_attn
# Where the embeddings are frozen, nothing is passed on to them.
NO_INPUT = 2 * WIDTH * 3 * WIDTH * LENGTH + 2 * RANK * WIDTH * LENGTH


def trained(blocks: int) -> float:
    """FLOPs of training LoRA on so many blocks from the front, without the head."""
    return blocks * (2 * BLOCK + 3 * ATTENTION + 3 * LORA) - NO_INPUT


# Forward through a block, of the eight tokens that check the cut before the first round.
PROBE = 2 * 12 * WIDTH**2 * 8 + 4 * WIDTH * 8**2 + 2 * RANK * (WIDTH + 3 * WIDTH) * 8
PASS = BLOCKS * (BLOCK + ATTENTION + LORA) + HEAD
FLOPS = {
    "fedllm": EXAMPLES * (trained(BLOCKS) + 3 * HEAD),
    "fedllm_full": EXAMPLES * 3 * (BLOCKS * (BLOCK + ATTENTION) + HEAD),
    "kd": (EXAMPLES + PUBLIC) * (trained(BLOCKS) + 3 * HEAD) + PUBLIC * PASS,
    "split": EXAMPLES * trained(3) + 3 * PROBE,
}
FACTORS = BLOCKS * RANK * (WIDTH + 3 * WIDTH)
STEPS = -(-EXAMPLES // 16)
UP = {  # bytes of tensors in float32
    "fedllm": 4 * (FACTORS + CLASSES * WIDTH),
    "fedllm_full": 4 * (124_439_808 + CLASSES * WIDTH),
    "kd": 4 * PUBLIC * CLASSES,
    # Activations, labels and lengths as int32, and the client part.
    "split": EXAMPLES * (4 * LENGTH * WIDTH + 4 + 4) + 4 * FACTORS * 3 // BLOCKS,
}


@pytest.fixture(scope="module")
def arms() -> dict[str, Arm]:
    words = (
        "model.id=gpt2 data.num_clients=3 rounds=1 training.max_length=64 training.batch_size=16 "
        "data.public_size=1000 adapter.r=8 adapter.target_modules=[c_attn] split.framework.cut=3"
    )
    planning = planning_of({"data": {"examples": EXAMPLES, "classes": CLASSES}})
    trees = arms_of(parse_overrides(words.split()))
    return {arm.label: arm for arm in plan_arms(trees, planning, Models())}


@pytest.mark.parametrize("label", FLOPS)
def test_flops(arms: dict[str, Arm], label: str) -> None:
    assert arms[label].flops == pytest.approx(FLOPS[label], rel=1e-9)


@pytest.mark.parametrize("label", UP)
def test_bytes(arms: dict[str, Arm], label: str) -> None:
    headers = 600 * (2 * STEPS if label == "split" else 2)
    assert UP[label] < arms[label].bytes_up <= UP[label] + headers


# What estimates without attention, head and headers say.
ROUGH = {"fedllm": (1.42e6, 73.5e12), "fedllm_full": (497.8e6, 110e12), "kd": (0.308e6, 106.6e12)}


@pytest.mark.parametrize("label", ROUGH)
def test_estimates_on_the_back_of_an_envelope(arms: dict[str, Arm], label: str) -> None:
    bytes_up, flops = ROUGH[label]
    assert arms[label].bytes_up == pytest.approx(bytes_up, rel=0.01)
    assert arms[label].flops == pytest.approx(flops, rel=0.01)
