"""What every mask, download, drift, aggregator and codec promises when FedLLM runs with it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from tiny import federation, tensors_digest
from trillium.component import Component, known
from trillium.frameworks.fedllm.aggregators import Aggregator
from trillium.frameworks.fedllm.downloads import Download
from trillium.frameworks.fedllm.drifts import Drift
from trillium.frameworks.fedllm.masks import Mask
from trillium.frameworks.heads import Head
from trillium.models.adapters import Adapter
from trillium.wire.codecs import Codec
from trillium.wire.wire import Wire

pytestmark = pytest.mark.usefixtures("uncounted")

MASKS = cast(dict[str, type[Mask]], known(Mask))
NAMES = [
    f"model.layers.{layer}.{module}.lora_{factor}.default.weight"
    for layer in range(5)
    for module in ("q", "v")
    for factor in ("A", "B")
] + ["model.score.weight"]
BOTH_WAYS = "framework.download=change"  # what any codec can go with


def words(kind: type[Component], name: str) -> tuple[str, ...]:
    """Return the settings under which FedLLM uses a choice."""
    key = {Adapter: "adapter", Head: "head"}.get(kind, f"framework.{kind.kind}")
    if kind is Codec:
        return (f"wire.up=[{name}]", f"wire.down=[{name}]", BOTH_WAYS)
    if kind is Adapter and name not in ("lora",):
        return (f"adapter={{name: {name}}}",)
    return (f"{key}={name}",)


CHOICES = [
    (kind, name)
    for kind in (Mask, Download, Drift, Aggregator, Codec, Head, Adapter)
    for name in known(kind)
    if kind is not Codec or "parameters" in cast(Any, known(Codec)[name])().kinds
]
each = pytest.mark.parametrize(("kind", "name"), CHOICES, ids=[f"{k.kind} {n}" for k, n in CHOICES])


@each
def test_two_rounds_with_each_choice(hub: Path, kind: type[Component], name: str) -> None:
    """Finite figures, something learnt by the server, the same again with the same seed."""
    runs = []
    for _ in range(2):
        many = ("data.num_clients=5",) if kind is Aggregator else ()  # some leave several out
        more = (*many, "model.dtype=float32")
        fed = federation(hub, *words(kind, name), *more, model="bert")
        history = fed.run()
        assert all(math.isfinite(line["loss"]) for line in history)
        assert all(bool(torch.isfinite(p).all()) for p in fed.server.state.values())
        runs.append(tensors_digest({**fed.server.state, **fed.server.base}))
        start = tensors_digest(fed.model.initial)
    assert runs[0] == runs[1] != start


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_trains_everything_in_its_time(name: str) -> None:
    mask: Mask = MASKS[name]()
    rounds = [mask.trained(NAMES, number) for number in range(1, 9)]
    assert rounds == [mask.trained(NAMES, number) for number in range(1, 9)]
    assert all(found and found <= set(NAMES) for found in rounds)
    assert all("model.score.weight" in found for found in rounds), "heads are always included"
    resting = set(NAMES).difference(*rounds)
    assert all("lora_A" in left for left in resting)  # only FFA's, which is drawn from the seed


@pytest.mark.parametrize("name", known(Download))
def test_the_first_download_is_known_without_a_message(hub: Path, name: str) -> None:
    fed = federation(hub, f"framework.download={name}", "rounds=1", model="bert")
    fed.run()
    first: Any = next(e for e in fed.fleet.ledger.entries if e.direction == "down")
    assert set(first.kinds) == {"control"}
    assert first.bytes < 300
    assert isinstance(fed.config.wire, Wire)
