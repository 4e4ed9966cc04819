"""What codecs lose: error feedback makes it good, unbiased ones lose nothing on average."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from codec_help import NAME, codec, normal, send, wire
from torch import Tensor

from trillium.wire.codecs import seeded
from trillium.wire.codecs.random_k import RandomK
from trillium.wire.message import Message

# Error feedback (§7, 13 and 14)


@pytest.mark.parametrize("name", ["cast", "int8", "int4", "int2", "sign", "top_k", "random_k"])
def test_what_was_sent_and_what_is_left_is_what_was_meant(name: str) -> None:
    over = wire(name)
    left, arrived, meant = (torch.zeros(700, dtype=torch.float64) for _ in range(3))
    forgotten = torch.zeros_like(left)
    for number in range(12):
        change = normal(700, seed=number).double() * 0.8**number
        message = Message("train", {NAME: (change + left).float()}, {"round": number})
        left = change + left - over.preview(message, "up").seen.tensors[NAME].double()
        arrived += over.unpack(over.pack(message, "up").data, "up").message.tensors[NAME].double()
        forgotten += send(change.float(), over, number).double()
        meant += change
    assert float((arrived + left - meant).norm() / meant.norm()) < 1e-14
    # Without feedback, what a codec loses in every round is lost for good.
    assert float((forgotten + left - meant).norm() / meant.norm()) > 1e-3


def distance_to_optimum(choice: Any, feedback: bool, num_rounds: int = 200) -> float:
    """Let five clients with different quadratics descend together; return the relative distance."""
    over, size = wire(choice), 256
    draw = torch.Generator().manual_seed(0)
    slopes = [torch.rand(size, generator=draw).double() * 1.5 + 0.5 for _ in range(5)]
    centres = [torch.randn(size, generator=draw).double() * 3 for _ in range(5)]
    total = torch.stack(slopes).sum(0)
    optimum = sum(h * a for h, a in zip(slopes, centres, strict=True)) / total
    point = torch.zeros(size, dtype=torch.float64)
    errors = [torch.zeros_like(point) for _ in range(5)]
    for number in range(num_rounds):
        rate, change = 0.1 / (1 + number / 40), torch.zeros_like(point)
        for k in range(5):
            meant = -rate * slopes[k] * (point - centres[k]) + (errors[k] if feedback else 0)
            message = Message("train", {NAME: meant.float()}, {"round": number})
            sent = over.preview(message, "up").seen.tensors[NAME].double()
            errors[k] = meant - sent
            change += sent / 5
        point = point + change
    return float((point - optimum).norm() / optimum.norm())


@pytest.mark.parametrize(
    ("choice", "within", "without"),
    [
        ("sign", 0.1, 0.5),
        ({"name": "top_k", "fraction": 0.05}, 0.1, 0.5),
        ("int2", 0.02, 0.2),
        ("int4", 0.005, 0.05),
        ("int8", 0.001, 0.003),
    ],
)
def test_error_feedback_finds_the_optimum_of_different_clients(
    choice: Any, within: float, without: float
) -> None:
    assert distance_to_optimum(choice, feedback=True) < within
    assert distance_to_optimum(choice, feedback=False) > without


class Unbiased(RandomK):
    """The mean over the keys is the tensor, as with one entry of ten sent ten times as large."""

    def decode(self, parts: Mapping[str, Tensor], key: int) -> Tensor:
        return super().decode(parts, key) / self.fraction


def test_error_feedback_needs_a_codec_that_does_not_expand() -> None:
    assert codec("int2", rounding="stochastic").expands
    assert not codec("int2").expands
    assert distance_to_optimum(RandomK(fraction=0.1), feedback=True) < 0.05
    assert not distance_to_optimum(Unbiased(fraction=0.1), feedback=True, num_rounds=60) < 100


# Unbiasedness (§7, 15 and 18)


def largest_z(samples: Tensor, wanted: Tensor, deviation: Tensor | None = None) -> float:
    """Return the largest deviation of a mean over dimension 0, in standard errors."""
    error = (samples.std(0) if deviation is None else deviation) / math.sqrt(len(samples))
    return float(((samples.mean(0) - wanted).abs() / error.clamp(min=1e-7)).max())


@pytest.mark.parametrize(("name", "spacing"), [("int8", 1), ("int4", 1), ("int2", 2)])
def test_stochastic_rounding_is_unbiased(name: str, spacing: int) -> None:
    cells = normal(1000)
    chosen = codec(name, rounding="stochastic")
    scale = chosen.encode(cells, 0)["scale"].double().repeat_interleave(64)[:1000]
    step = spacing * scale
    # Between two levels that are a step apart, one is drawn; int2 has odd multiples of its scale.
    share = ((cells - scale * (spacing - 1)) / step) % 1
    samples = [chosen.decode(chosen.encode(cells, key), key) for key in range(400)]
    deviation = step * (share * (1 - share)).sqrt()
    assert largest_z(torch.stack(samples).double(), cells.double(), deviation) < 4.5
    nearest = send(cells, wire(name))[None].repeat(400, 1).double()
    assert largest_z(nearest, cells.double(), deviation) > 10


def test_clients_round_independently() -> None:
    first, second = normal(2000, seed=1), normal(2000, seed=2)
    over = wire({"name": "int4", "rounding": "stochastic"})
    errors = torch.stack([send(tensor, over) - tensor for tensor in (first, second)])
    assert abs(float(torch.corrcoef(errors)[0, 1])) < 0.1
    assert torch.equal(send(first, over), send(first, over))
    noise = torch.stack([seeded.noise(0, tensor) for tensor in (first, second)])
    assert abs(float(torch.corrcoef(noise)[0, 1])) < 0.1
    assert abs(float(noise.mean()) - 0.5) < 0.02
    assert float(noise.min()) >= 0
    assert float(noise.max()) < 1
