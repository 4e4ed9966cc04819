"""Checkpoints of every architecture with few random weights, made of configurations alone.

Each has three or four blocks, a vocabulary of 44 words and a tokenizer of them, and nothing is fetched.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, PreTrainedTokenizerFast

SPECIAL = ("[PAD]", "[UNK]", "[BOS]", "[EOS]")
NUM_WORDS = 40
CLASSES = ("class 0", "class 1", "class 2")
AUTO = {
    "causal_lm": "AutoModelForCausalLM",
    "classification": "AutoModelForSequenceClassification",
}
# What makes any configuration small, where it has such an option.
SMALL: dict[str, Any] = dict(
    vocab_size=len(SPECIAL) + NUM_WORDS, hidden_size=24, num_hidden_layers=3,
    num_attention_heads=4, num_key_value_heads=2, head_dim=8, intermediate_size=40,
    max_position_embeddings=64, pad_token_id=0, bos_token_id=2, eos_token_id=3,
    d_model=24, n_embd=24, n_layer=3, n_head=4, n_inner=40, n_positions=64, n_layers=3, n_heads=4,
    num_heads=4, num_layers=3, d_inner=40, d_ff=40, d_kv=6, dim=24, hidden_dim=40, ffn_dim=40,
    num_experts=4, num_local_experts=4, n_routed_experts=4, num_experts_per_tok=2,
    num_experts_per_token=2, top_k_experts=2, moe_intermediate_size=16, moe_layer_freq=1,
    shared_expert_intermediate_size=16, n_shared_experts=1, n_group=1, topk_group=1,
    first_k_dense_replace=1, q_lora_rank=12, kv_lora_rank=8, qk_nope_head_dim=8,
    qk_rope_head_dim=4, qk_head_dim=12, v_head_dim=8, linear_key_head_dim=8, linear_value_head_dim=8,
    linear_num_key_heads=2, linear_num_value_heads=4, sliding_window=4, embedding_size=16,
    word_embed_proj_dim=16, rotary_dim=4, state_size=4, expand=2, time_step_rank=4, n_groups=1,
    mamba_d_state=4, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_n_groups=1, mamba_expand=2,
    mamba_chunk_size=8, chunk_size=8, lru_width=24, attention_window_size=8, block_types=None,
    mamba_dt_rank=4, query_pre_attn_scalar=8, encoder_layers=3, decoder_layers=3,
    encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=40, decoder_ffn_dim=40,
    conv_L_cache=3, block_ff_dim=40, hidden_size_per_layer_input=8, vocab_size_per_layer_input=44,
    type_vocab_size=1, num_decoder_layers=3,
)  # fmt: skip
_MAMBA = dict(mamba_n_heads=6, mamba_d_head=8, num_hidden_layers=4)
# What an architecture needs beside it.
OWN: dict[str, dict[str, Any]] = {
    "phi": dict(
        hidden_size=32,
        rope_parameters=dict(rope_type="default", rope_theta=1e4, partial_rotary_factor=0.5),
    ),
    # Their own scale of logits lets so little be learnt in KD that float32 cannot tell it.
    "cohere": dict(logit_scale=0.5),
    "cohere2": dict(logit_scale=0.5),
    "mamba2": dict(num_heads=6),
    "bamba": _MAMBA | dict(attn_layer_indices=[1, 3]),
    "granitemoehybrid": _MAMBA | dict(layer_types=["mamba", "attention"] * 2),
    "recurrent_gemma": dict(block_types=["recurrent", "recurrent", "attention"]),
    "zamba2": dict(num_hidden_layers=4, layers_block_type=["mamba", "mamba", "hybrid", "hybrid"]),
    "gpt_neo": dict(attention_types=[[["global", "local", "global"], 1]], window_size=4),
    "xlnet": dict(max_position_embeddings=None),
    "funnel": dict(num_hidden_layers=None, block_sizes=[2, 2], block_repeats=[1, 1]),
    "helium": dict(head_dim=6),
    "persimmon": dict(hidden_size=32),
    "jamba": dict(attn_layer_period=2, attn_layer_offset=1),
    "t5": dict(decoder_start_token_id=0),
    "qwen3_next": dict(num_hidden_layers=4),
    "deepseek_v3": dict(head_dim=4, num_key_value_heads=4),
    "deepseek_v2": dict(head_dim=4, num_key_value_heads=4),
    "qwen3_5": dict(text_config=dict(num_hidden_layers=4)),
    "qwen3_5_moe": dict(text_config=dict(num_hidden_layers=4)),
    "lfm2": dict(layer_types=["conv", "full_attention", "conv"]),
}
_WRITE = """
    gpt2 llama mistral qwen2 qwen3 gemma gemma2 gemma3_text phi phi3 opt gpt_neox gpt_neo gptj bloom
    falcon mpt stablelm starcoder2 olmo olmo2 olmo3 cohere cohere2 granite glm glm4 helium smollm3
    persimmon nemotron codegen xglm biogpt gpt_bigcode exaone4 ministral seed_oss ernie4_5
    mixtral qwen2_moe qwen3_moe qwen3_next olmoe granitemoe deepseek_v2 deepseek_v3 gpt_oss
    glm4_moe ernie4_5_moe
    gemma3 qwen3_5 qwen3_5_moe llama4 gemma4 gemma4_text
    lfm2 mamba mamba2 falcon_h1 falcon_mamba jamba bamba recurrent_gemma zamba2 minimax
    granitemoehybrid nemotron_h rwkv xlnet
"""
_CLASSIFY = """
    bert roberta xlm-roberta distilbert albert electra deberta deberta-v2 modernbert mpnet camembert
    rembert ernie convbert roformer longformer xlnet funnel big_bird mobilebert eurobert nomic_bert
    t5 bart gpt2 llama mistral qwen3 gemma3_text mixtral gemma3 qwen3_5 gpt_neo
"""
Architectures = dict[str, tuple[str, dict[str, Any]]]
"""By name: the model type, and the options of its configuration."""
DECODERS: Architectures = {name: (name, {}) for name in _WRITE.split()}
ENCODERS: Architectures = {name: (name, {}) for name in _CLASSIFY.split()}
DECODERS["llama, dynamic RoPE"] = (
    "llama",
    dict(
        max_position_embeddings=16,
        rope_parameters=dict(rope_type="dynamic", rope_theta=1e4, factor=2.0),
    ),
)
DECODERS["phi3, LongRoPE"] = (
    "phi3",
    dict(
        original_max_position_embeddings=16,
        rope_parameters=dict(
            rope_type="longrope",
            rope_theta=1e4,
            short_factor=[1.0, 1.1, 1.2],
            long_factor=[2.0, 3.0, 4.0],
        ),
    ),
)


def _has(hf_config: Any, name: str) -> bool:
    try:
        found = getattr(type(hf_config), name, None)
        return hasattr(hf_config, name) and not (isinstance(found, property) and not found.fset)
    except (
        Exception
    ):  # XLNet's positions have no bound, Gemma 4's widths differ by block: both say so so
        return False


def shrink(hf_config: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that make a configuration small, its nested ones, too."""
    found: dict[str, Any] = {k: v for k, v in SMALL.items() if _has(hf_config, k)}
    for key in getattr(hf_config, "sub_configs", {}):
        inner = getattr(hf_config, key, None)
        if inner is not None:
            own = options.get(key, {})
            tree = shrink(inner, own)
            if "vision" in key or "audio" in key:
                tree |= {k: v for k, v in _DEEP.items() if hasattr(inner, k)} | own
            tree["model_type"] = inner.model_type
            found[key] = tree
    return found | {k: v for k, v in options.items() if k not in found or not isinstance(v, dict)}


# A vision tower that is deeper than the language one.
_DEEP: dict[str, Any] = dict(num_hidden_layers=5, depth=5, num_attention_heads=4, num_heads=4,
    image_size=28, patch_size=14, vision_output_dim=24, projector_input_dim=24, projector_output_dim=24,
    out_hidden_size=24, num_position_embeddings=16)  # fmt: skip


def configuration(model_type: str, options: Mapping[str, Any]) -> Any:
    """Return a small configuration of an architecture."""
    own = OWN.get(model_type, {}) | dict(options)
    kind = type(AutoConfig.for_model(model_type))
    return kind(**{k: v for k, v in shrink(kind(), own).items() if v is not None})


def write_tokenizer(folder: Path, *, ends: bool = False) -> None:
    """Write a tokenizer of whole words, which may end each text with a token."""
    words = {word: index for index, word in enumerate(SPECIAL)}
    words |= {f"w{i}": len(SPECIAL) + i for i in range(NUM_WORDS)}
    raw = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    if ends:
        raw.post_processor = processors.TemplateProcessing(
            single="$A [EOS]", special_tokens=[("[EOS]", SPECIAL.index("[EOS]"))]
        )
    names = dict(zip(("pad_token", "unk_token", "bos_token", "eos_token"), SPECIAL, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=raw, **names).save_pretrained(folder)


def write_checkpoint(folder: Path, model_type: str, task: str, **options: Any) -> Path:
    """Write a model with weights that are far from zero; a classifier knows its classes by name."""
    config = configuration(model_type, options)
    if task == "classification":
        config.id2label = dict(enumerate(CLASSES))
        config.label2id = {name: index for index, name in enumerate(CLASSES)}
    torch.manual_seed(7)
    model = getattr(transformers, AUTO[task]).from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.eval()(input_ids=torch.tensor([[2, 5, 6, 3]]))  # such a configuration can be run at all
    model.save_pretrained(folder)
    write_tokenizer(folder, ends=config.is_encoder_decoder)
    return folder


def write_rows(folder: Path, num_rows: int = 20) -> None:
    """Write a few rows for each task."""
    draw = torch.Generator().manual_seed(5)

    def text(low: int, high: int) -> str:
        length = int(torch.randint(low, high, (), generator=draw))
        return " ".join(f"w{i}" for i in torch.randint(NUM_WORDS, (length,), generator=draw))

    rows = [{"text": f"w{i % 3} {text(3, 12)}", "label": CLASSES[i % 3]} for i in range(num_rows)]
    pairs = [{"prompt": text(3, 8), "completion": text(2, 6)} for _ in range(num_rows)]
    for name, lines in (("classification", rows), ("causal_lm", pairs)):
        content = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(content, encoding="utf-8")
