"""Start values follow from the seed and the tensor's name, whatever else is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints import checkpoint, load
from trillium.models.load import LanguageModel

ADAPTERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "lora": ({"name": "lora", "target_modules": ["query"]}, {"target_modules": "all-linear"}),
    "orthonormal": (
        {"name": "lora", "target_modules": ["query"], "init": "orthonormal"},
        {"target_modules": ["key", "query"]},
    ),
    "embeddings": (
        {"name": "lora", "target_modules": ["word_embeddings"]},
        {"target_modules": ["query", "word_embeddings"]},
    ),
    "bottleneck": ({"name": "bottleneck", "layers": [1]}, {"layers": [0, 1]}),
}


def values(model: LanguageModel) -> dict[str, torch.Tensor]:
    return {**dict(model.module.named_parameters()), **model.initial}


@pytest.mark.parametrize("name", ADAPTERS)
def test_what_else_is_adapted_changes_no_value(hub: Path, name: str) -> None:
    few, more = ADAPTERS[name]
    folder = checkpoint(hub, "bert", "SEQ_CLS")
    alone, among = load(folder, "SEQ_CLS", few), load(folder, "SEQ_CLS", {**few, **more})
    assert alone.initial.keys() < among.initial.keys()
    assert all(torch.equal(tensor, among.initial[n]) for n, tensor in alone.initial.items())
    other = load(folder, "SEQ_CLS", few, seed=1).initial
    drawn = [n for n, tensor in alone.initial.items() if bool((tensor != tensor.view(-1)[0]).any())]
    assert any("classifier" not in n for n in drawn)
    assert not any(torch.equal(other[n], alone.initial[n]) for n in drawn)
    # None of them is another one's.
    assert len({among.initial[n].sum() for n in drawn}) == len(drawn)


def test_no_checkpoint_changes_what_another_lacks(hub: Path) -> None:
    """With the head in the checkpoint less is drawn; what still is, is the same."""
    bare, whole = (checkpoint(hub, "bert", "SEQ_CLS", with_head=has) for has in (False, True))
    lora = {"name": "lora", "target_modules": ["query"]}
    one, two = (values(load(folder, "SEQ_CLS", lora, head="own")) for folder in (bare, whole))
    same = {n for n, tensor in one.items() if n in two and torch.equal(tensor, two[n])}
    assert {n for n in one if "lora_A" in n} <= same
    assert not any("classifier" in n and n.endswith("weight") for n in same)
    again = load(bare, "SEQ_CLS", {"name": "full"}).initial
    head = "base_model.model.classifier.modules_to_save.default.weight"
    assert torch.equal(again["classifier.weight"], one[head])
    pooler = "bert.pooler.dense.weight"
    saved = f"base_model.model.{pooler.removesuffix('.weight')}.modules_to_save.default.weight"
    assert torch.equal(again[pooler], one[saved])
