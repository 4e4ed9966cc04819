"""What a framework says that it sends is what it sends (`test_plans.py`, too), and codecs go by it."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from crossed import crossed
from tiny import experiment_config, federation
from trillium.component import known
from trillium.errors import UserError
from trillium.wire.codecs import Codec
from trillium.wire.codecs.rows import RowCodec
from variants import VARIANTS

CODECS = cast(dict[str, type[Codec]], known(Codec))


@pytest.mark.drill
def test_what_is_said_crosses_in_some_variant(hub: Path) -> None:
    told: set[tuple[str, str, str]] = set()
    found: set[tuple[str, str, str]] = set()
    for variant in VARIANTS.values():
        run = federation(hub, *variant.words, model=variant.model, task=variant.task)
        run.run()
        told |= {
            (variant.framework, *way) for way in run.config.framework.crossings(run.config) or ()
        }
        found |= {(variant.framework, *way) for way in crossed(run)}
    assert told <= found


REFUSED = [
    ("split", "up", "{name: top_k, fraction: 0.05}", "parameters", "kinds: [activations]"),
    ("split", "up", "random_k", "activations|parameters", "int8|gradients"),
    ("split", "up", "sign", "parameters", "kinds: [activations]"),
    ("split", "down", "top_k", "parameters", "kinds: [gradients]"),
    ("split", "down", "sign", "parameters", "kinds: [gradients]"),
    ("split", "up", "{name: adaptive, steps: [int8, top_k]}", "parameters", "activations"),
    ("kd", "up", "top_k", "logits", "another codec"),
    ("kd", "up", "sign", "logits", "another codec"),
    ("kd", "down", "random_k", "logits", "another codec"),
    ("fedllm", "down", "sign", "parameters", "framework.download=change"),
]


@pytest.mark.parametrize(("framework", "way", "codec", "kind", "instead"), REFUSED)
def test_a_codec_for_changes_is_not_applied_to_values(
    hub: Path, framework: str, way: str, codec: str, kind: str, instead: str
) -> None:
    with pytest.raises(UserError, match=kind) as refusal:
        experiment_config(hub, f"framework={framework}", f"wire.{way}=[{codec}]")
    assert any(part in refusal.value.instead for part in instead.split("|"))


@pytest.mark.parametrize("more", ["{local_rounds: 1, train: server}", "{delta: {}}"])
def test_nor_where_other_settings_send_parameters(hub: Path, more: str) -> None:
    words = (f"framework={{name: split, {more[1:]}", "wire.up=[top_k]", "rounds=3")
    with pytest.raises(UserError, match="parameters"):
        experiment_config(hub, *words)
    experiment_config(hub, *words[:1], "wire.up=[{name: top_k, kinds: [activations]}]", "rounds=3")


@pytest.mark.parametrize("name", CODECS)
def test_a_codec_whose_kinds_never_cross_is_refused(hub: Path, name: str) -> None:
    with pytest.raises(UserError, match="nothing is sent"):
        experiment_config(hub, "framework=local_only", f"wire.up=[{name}]")
    if not issubclass(CODECS[name], RowCodec):
        with pytest.raises(UserError, match="nothing is sent up"):
            experiment_config(
                hub, "framework=fedllm", f"wire.up=[{{name: {name}, kinds: [logits]}}]"
            )
