"""What a plan says of private runs: the noise beside what is really added up."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tiny import experiment_config
from trillium.plan.data import Assumptions, assumed_texts
from trillium.plan.predict import predict
from trillium.plan.result import to_dict

pytest.importorskip("dp_accounting")

COMMON = ("framework.weights=equal", "training.max_length=24", "training.local_steps=1")


@pytest.mark.parametrize(
    ("words", "width", "units"),
    [
        # B of the adapter alone, and the noise of three clients.
        (
            (
                "framework.mask=ffa",
                "training.lr_factors={head: 0}",
                "training.batch_size=4",
                "privacy={name: example, noise: 0.5, population: 12}",
            ),
            None,
            4 * math.sqrt(3),
        ),
        # A number for each direction.
        (
            (
                "framework={name: fedkseed, num_seeds: 16}",
                "privacy={name: client, noise: 0.5, population: 3}",
            ),
            16,
            3,
        ),
    ],
)
def test_noise_is_told_beside_what_is_added_up(
    hub: Path, words: tuple[str, ...], width: int | None, units: float
) -> None:
    own = COMMON if width is None else COMMON[1:]
    config = experiment_config(hub, *own, *words, "data.num_clients=3")
    found = predict(config, assumed_texts(config, Assumptions()))
    if width is None:
        model = found.shared.models.get(config, found.texts.num_classes, None)
        initial = model.initial.items()
        width = sum(t.numel() for name, t in initial if "lora_B" in name)
        assert 0 < width < found.num_trained
    told = to_dict(found)["privacy"]
    assert told["noise_over_sum"] == pytest.approx(0.5 * math.sqrt(width) / units)
    assert not found.estimate or "add up" in found.estimate
