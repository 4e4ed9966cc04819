"""Checkpoints that are not what their configuration says, and tokenizers that read otherwise."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from checkpoints import checkpoint, load
from tiny import experiment_config
from trillium.errors import UserError
from trillium.experiment.run import build
from trillium.models.tokenizers import read_tokenizer
from trillium.tasks.writing import Decoding, write_whole

WEIGHTS = "model.safetensors"
Change = Callable[[Path], None]


def tensors(change: Callable[[dict[str, Any]], object]) -> Change:
    """Change the tensors of a folder."""

    def done(folder: Path) -> None:
        found = load_file(folder / WEIGHTS)
        change(found)
        save_file(found, folder / WEIGHTS, metadata={"format": "pt"})

    return done


def configuration(**options: object) -> Change:
    """Change the configuration of a folder."""

    def done(folder: Path) -> None:
        told = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(told | options))

    return done


def cut_off(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])


def rewritten(name: str, content: bytes) -> Change:
    """Put other content in a file."""

    def done(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return done


def put(name: str, value: float) -> Change:
    return tensors(lambda found: found[name].view(-1)[3].fill_(value))


NORM = "model.layers.1.input_layernorm.weight"
FOUR_BITS = {"quant_method": "bitsandbytes", "load_in_4bit": True}
DAMAGED: dict[str, tuple[Change, str]] = {
    "no head": (
        tensors(lambda t: t.pop("lm_head.weight")),
        "lack lm_head.weight, with which tokens",
    ),
    "no norm": (tensors(lambda t: t.pop(NORM)), f"lack {NORM}, and the model would have random"),
    "no block": (
        tensors(lambda t: [t.pop(n) for n in [*t] if ".layers.2." in n]),
        r"lack model.layers.2.* and 8 more tensors",
    ),
    "truncated": (cut_off, "cannot be loaded as a folder"),
    "garbage": (rewritten(WEIGHTS, b"\x00" * 999), "cannot be loaded"),
    "empty": (rewritten(WEIGHTS, b""), "cannot be loaded"),
    "NaN": (put(NORM, float("nan")), f"NaN or infinity, in .*{NORM}"),
    "infinity": (put("lm_head.weight", float("-inf")), "NaN or infinity, in .*lm_head.weight"),
    "other width": (
        configuration(intermediate_size=24),
        r"layers.0.mlp.down_proj.weight has the shape \(12, 20\) there, and \(12, 24\)",
    ),
    "fewer blocks": (configuration(num_hidden_layers=2), "more blocks than the 2"),
    "more blocks": (configuration(num_hidden_layers=4), "lack model.layers.3"),
    "four bits": (configuration(quantization_config=FOUR_BITS), "a package that is not installed"),
    "no JSON": (rewritten("config.json", b"{"), "cannot be loaded as a folder"),
    "no architecture": (
        configuration(model_type="nothing"),
        "not part of Transformers|cannot be loaded",
    ),
    "heads that do not divide": (
        configuration(num_attention_heads=5),
        "cannot be loaded|the shape",
    ),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_checkpoint_is_refused_in_three_parts(
    hub: Path, tmp_path: Path, kind: str
) -> None:
    change, why = DAMAGED[kind]
    folder = tmp_path / "model"
    shutil.copytree(checkpoint(hub, "llama", "CAUSAL_LM"), folder)
    load(folder, "CAUSAL_LM", "lora")  # which is sound
    change(folder)
    with pytest.raises(UserError, match=why) as caught:
        load(folder, "CAUSAL_LM", "lora")
    assert caught.value.given == f"model.id={folder}"
    assert caught.value.instead
    assert "Traceback" not in str(caught.value)


def test_a_classifier_may_lack_its_head_and_a_pooler_but_no_block(
    hub: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(checkpoint(hub, "bert", "SEQ_CLS"), folder)
    load(folder, "SEQ_CLS", "lora")
    tensors(lambda t: t.pop("encoder.layer.1.output.dense.weight"))(folder)
    with pytest.raises(UserError, match=r"lack .*encoder.layer.1.output.dense.weight"):
        load(folder, "SEQ_CLS", "lora")


def test_a_classifier_may_not_lack_what_stands_behind_its_blocks(hub: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(checkpoint(hub, "llama", "SEQ_CLS"), folder)
    load(folder, "SEQ_CLS", "lora")
    tensors(lambda t: t.pop("norm.weight"))(folder)
    with pytest.raises(UserError, match=r"lack .*norm.weight, and the model would have random"):
        load(folder, "SEQ_CLS", "lora")


def test_a_classifier_with_a_body_of_another_shape_is_refused(hub: Path, tmp_path: Path) -> None:
    """A head of other classes is drawn anew; nothing else may be."""
    folder = tmp_path / "model"
    shutil.copytree(checkpoint(hub, "bert", "SEQ_CLS", with_head=True), folder)
    configuration(intermediate_size=28)(folder)
    with pytest.raises(UserError, match="do not belong together"):
        load(folder, "SEQ_CLS", "lora")


def test_a_body_that_was_saved_alone_writes_where_its_head_is_tied(
    hub: Path, tmp_path: Path
) -> None:
    whole = checkpoint(hub, "gpt2", "CAUSAL_LM")
    model = load(whole, "CAUSAL_LM", "lora")
    folder = tmp_path / "body"
    AutoModelForCausalLM.from_pretrained(whole).base_model.save_pretrained(folder)
    for file in whole.glob("token*"):
        shutil.copy(file, folder)
    alone = load(folder, "CAUSAL_LM", "lora")
    ids = torch.tensor([[5, 6, 7]])
    found, expected = (m.module(input_ids=ids).logits for m in (alone, model))
    torch.testing.assert_close(found, expected)


# Settings of generation

OWN = {"num_beams": 3, "repetition_penalty": 5.0, "suppress_tokens": [*range(20, 44)]}


def test_a_checkpoints_way_to_write_is_taken_only_where_it_is_asked_for(
    hub: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(checkpoint(hub, "llama", "CAUSAL_LM"), folder)
    prompts = [[2, 5, 6, 7], [2, 30, 31]]

    def written(decoding: Decoding) -> list[list[int]]:
        model = load(folder, "CAUSAL_LM", "lora")
        module = model.module.eval()
        own = (module, model.tokenizer, model.device, prompts, decoding)
        found = write_whole(*own, max_new_tokens=8)
        assert module.get_base_model().generation_config.num_beams == beams  # type: ignore[operator]
        return found

    beams = None
    plain = written("greedy")
    assert max(token for text in plain for token in text) >= 20
    (folder / "generation_config.json").write_text(json.dumps(OWN))
    beams = 3
    assert written("greedy") == plain
    own = written("checkpoint")
    assert own != plain
    assert max(token for text in own for token in text) < 20


def test_settings_of_generation_that_contradict_each_other_stop_no_export(
    hub: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(checkpoint(hub, "llama", "CAUSAL_LM"), folder)
    wrong = {
        "do_sample": False,
        "temperature": 0.3,
        "top_p": 7.0,
        "num_beams": 1,
        "early_stopping": True,
    }
    (folder / "generation_config.json").write_text(json.dumps(wrong))
    model = load(folder, "CAUSAL_LM", "lora")
    model.save(model.state(), tmp_path / "adapter")
    model.save_merged(model.state(), tmp_path / "merged")
    for name in ("adapter", "merged"):
        assert (tmp_path / name / "generation_config.json").is_file()


# Tokenizers


def as_qwen(hub: Path, folder: Path) -> Path:
    """Give a model of words an architecture for which Transformers takes a tokenizer of bytes."""
    shutil.copytree(checkpoint(hub, "llama", "CAUSAL_LM"), folder)
    configuration(model_type="qwen2", architectures=["Qwen2ForCausalLM"])(folder)
    return folder


def test_the_tokenizer_is_the_one_in_the_folder(
    hub: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = as_qwen(hub, tmp_path / "model")
    text = "w1 w2 w39"
    words = PreTrainedTokenizerFast.from_pretrained(folder)(text)["input_ids"]
    assert AutoTokenizer.from_pretrained(folder)(text)["input_ids"] != words
    with caplog.at_level(logging.WARNING, "trillium"):
        found = read_tokenizer(str(folder), None, trust_remote_code=False)
    assert found(text)["input_ids"] == words
    assert "reads texts otherwise than tokenizer.json says" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, "trillium"):
        read_tokenizer(str(hub / "gpt2"), None, trust_remote_code=False)
    assert not caplog.text


def test_texts_of_no_tokens_are_counted_and_refused(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the reason: begin and end alone would be learnt to a fine perplexity."""

    def deaf(*_: object, **__: object) -> Any:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(hub / "gpt2")
        made = tokenizer._tokenizer.to_str()
        told = json.loads(made)
        told["normalizer"] = {"type": "Replace", "pattern": {"Regex": "w1\\b.*"}, "content": ""}
        tokenizer._tokenizer = type(tokenizer._tokenizer).from_str(json.dumps(told))
        return tokenizer

    monkeypatch.setattr("trillium.models.inputs.read_tokenizer", deaf)
    config = experiment_config(hub, task="classification")
    with pytest.raises(UserError, match=r"makes no token of \d+ of \d+ texts, the first in row"):
        build(config)
