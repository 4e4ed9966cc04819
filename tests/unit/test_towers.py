"""Of a composite model the language part is found and trains; experts are left alone."""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers

from tiny import federation
from trillium.component import resolve
from trillium.errors import UserError
from trillium.models.adapters import Adapter
from trillium.models.base import ModelConfig
from trillium.models.blocks import find_blocks, other_towers
from trillium.models.factors import adapts_experts
from trillium.models.hub import set_dropout
from trillium.models.inputs import positions_of
from trillium.models.load import LanguageModel, load_model

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
ADAPTERS = [
    "lora",
    "{name: lora, target_modules: all-linear}",
    "{name: lora, target_modules: [q_proj, fc1]}",
    "{name: bitfit, layer_norm: true}",
    "full",
]


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("tiny_models")


def load(folder: Path, adapter: object = "lora", **options: Any) -> LanguageModel:
    config = ModelConfig(id=str(folder), device="cpu", **options)
    auto, task = "AutoModelForCausalLM", "CAUSAL_LM"
    found: Adapter = resolve(Adapter, adapter)
    return load_model(config, found, auto_class=auto, peft_task=task, labels=(), seed=0)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_nothing_trains_but_the_language_part(
    tiny: ModuleType, tmp_path: Path, adapter: str
) -> None:
    import yaml

    folder = tiny.write_checkpoint(tmp_path / "m", "gemma3", "causal_lm")
    model = load(folder, yaml.safe_load(adapter))
    assert len(other_towers(model.module)) == 2
    assert model.initial
    assert not [n for n in model.initial if "vision" in n or "multi_modal" in n]
    assert [n for n in model.initial if ".language_model.layers." in n]
    name, blocks = find_blocks(model.module)
    assert name.endswith("language_model.layers")
    assert len(blocks) == 3  # the tower of images has five
    if adapter != "full":
        layers = [n for n, m in model.module.named_modules() if hasattr(m, "lora_A")]
        assert not [n for n in layers if "vision" in n]


def test_a_plain_model_has_no_other_towers(tiny: ModuleType) -> None:
    for kind in ("gpt2", "llama", "mixtral"):
        config = tiny.configuration(kind, {})
        with torch.device("meta"):
            assert other_towers(transformers.AutoModelForCausalLM.from_config(config)) == ()


def test_dropout_reaches_nested_configurations(tiny: ModuleType) -> None:
    config = tiny.configuration("gemma3", {"text_config": {"attention_dropout": 0.3}})
    set_dropout(config, 0.0)
    assert config.text_config.attention_dropout == 0.0


def test_a_rate_that_is_a_whole_number_can_be_zero_and_nothing_else(tiny: ModuleType) -> None:
    """Whole numbers in a file do not make a rate one."""
    config = tiny.configuration("llama", {"attention_dropout": 0})
    set_dropout(config, 0.1)
    assert config.attention_dropout == 0.1
    config = tiny.configuration("mpt", {})
    set_dropout(config, 0.0)
    assert config.attn_config.attn_pdrop == 0
    with pytest.raises(UserError, match=r"attn_pdrop of \w+ takes no such number"):
        set_dropout(config, 0.1)


def test_experts_are_left_alone_unless_they_are_named(tiny: ModuleType, tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path / "m", "mixtral", "causal_lm")
    for plain in ("lora", {"name": "lora", "target_modules": "all-linear"}):
        model = load(folder, plain)
        assert not adapts_experts(model.module)
        assert {n.split(".")[-4] for n in model.initial} >= {"q_proj", "v_proj"}
    model = load(folder, {"name": "lora", "experts": ["gate_up_proj", "down_proj"]})
    assert adapts_experts(model.module)
    assert [n for n in model.initial if "experts" in n]
    assert all("experts" not in f.layer for f in model.factors)
    with pytest.raises(ValueError, match="plain LoRA alone"):
        load(folder, {"name": "lora", "experts": ["down_proj"], "dora": True})


def test_what_combines_products_refuses_experts(
    tiny: ModuleType, tmp_path: Path, hub: Path
) -> None:
    folder = tiny.write_checkpoint(tmp_path / "m", "mixtral", "causal_lm")
    words = (
        f"model.id={folder}",
        "model.dtype=float32",
        "adapter={name: lora, experts: [down_proj]}",
    )
    fed = federation(hub, *words, "framework.aggregator=stack", task="causal_lm")
    with pytest.raises(UserError, match="each expert in such a tensor has its own"):
        fed.config.framework.start(fed.server, fed.fleet)


def test_eager_attention_is_taken_where_there_is_no_other(
    tiny: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tiny.write_checkpoint(tmp_path / "m", "gpt_neo", "causal_lm")
    with caplog.at_level(logging.WARNING, "trillium"):
        load(folder)
    assert "eager attention alone for gpt_neo" in caplog.text
    with pytest.raises(UserError, match="only eager attention"):
        load(folder, attention="sdpa")
    caplog.clear()
    with caplog.at_level(logging.WARNING, "trillium"):
        load(tiny.write_checkpoint(tmp_path / "llama", "llama", "causal_lm"))
    assert "eager" not in caplog.text


def test_a_text_is_no_longer_than_positions_mean_the_same(tiny: ModuleType) -> None:
    """Behind the original length LongRoPE turns all positions of a batch."""
    model_type, options = tiny.DECODERS["phi3, LongRoPE"]
    config = tiny.configuration(model_type, options)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    assert config.max_position_embeddings == 64
    assert positions_of(model, config) == 16
