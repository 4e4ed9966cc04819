"""A Hugging Face folder of a model in the format of llama2.c (github.com/karpathy/llama2.c).

The checkpoint is seven integers (dim, hidden dim, layers, heads, key-value heads, vocabulary, longest
sequence; a negative vocabulary says that the last layer has weights of its own) and then the tensors
in float32, those of all layers together. The tokenizer is a list of pieces with scores: SentencePiece's
BPE, in which of all neighbours that can be joined those with the best score are, and a byte that no
piece covers is a piece `<0x..>`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPACE = "▁"  # how SentencePiece spells it


@dataclass(frozen=True)
class Header:
    """The first integers of a checkpoint."""

    dim: int
    hidden_dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    vocab_size: int
    max_length: int


def convert(checkpoint: Path, tokenizer: Path, folder: Path) -> None:
    """Write the model and its tokenizer as Hugging Face would."""
    model, header = read_model(checkpoint)
    model.save_pretrained(folder)
    read_tokenizer(tokenizer, header.vocab_size).save_pretrained(folder)


def read_model(path: Path) -> tuple[LlamaForCausalLM, Header]:
    """Return the model of a checkpoint, and its header."""
    data = path.read_bytes()
    dim, hidden, layers, heads, kv_heads, size, length = struct.unpack("<7i", data[:28])
    tied = size > 0
    header = Header(dim, hidden, layers, heads, kv_heads, abs(size), length)
    config = LlamaConfig(
        vocab_size=header.vocab_size,
        hidden_size=header.dim,
        intermediate_size=header.hidden_dim,
        num_hidden_layers=header.num_layers,
        num_attention_heads=header.num_heads,
        num_key_value_heads=header.num_kv_heads,
        max_position_embeddings=header.max_length,
        rms_norm_eps=1e-5,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config)
    values = _tensors(np.frombuffer(data, dtype="<f4", offset=28), header, tied)
    missing = model.load_state_dict(values, strict=not tied)
    assert set(missing.missing_keys) <= {"lm_head.weight"}, missing
    return model, header


def _tensors(values: np.ndarray, header: Header, tied: bool) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by their names at Hugging Face."""
    count, dim, size = header.num_layers, header.dim, header.dim // header.num_heads
    position = 0

    def take(*shape: int) -> Tensor:
        nonlocal position
        start, position = position, position + int(np.prod(shape))
        return torch.from_numpy(values[start:position].reshape(shape).copy())

    found = {"model.embed_tokens.weight": take(header.vocab_size, dim)}
    layers = {
        "input_layernorm": take(count, dim),
        "self_attn.q_proj": _halves(take(count, header.num_heads * size, dim), size),
        "self_attn.k_proj": _halves(take(count, header.num_kv_heads * size, dim), size),
        "self_attn.v_proj": take(count, header.num_kv_heads * size, dim),
        "self_attn.o_proj": take(count, dim, header.num_heads * size),
        "post_attention_layernorm": take(count, dim),
        "mlp.gate_proj": take(count, header.hidden_dim, dim),
        "mlp.down_proj": take(count, dim, header.hidden_dim),
        "mlp.up_proj": take(count, header.hidden_dim, dim),
    }
    for name, tensor in layers.items():
        found |= {f"model.layers.{i}.{name}.weight": tensor[i].clone() for i in range(count)}
    found["model.norm.weight"] = take(dim)
    take(2, header.max_length, size // 2)  # cosines and sines of positions, which follow from these
    if not tied:
        found["lm_head.weight"] = take(header.vocab_size, dim)
    assert position == len(values), "the file is longer or shorter than its header says"
    return found


def _halves(weights: Tensor, size: int) -> Tensor:
    """Reorder rows `(layers, heads * size, dim)` from pairs side by side to pairs of halves.

    Rotary positions turn pairs of rows: 2i and 2i + 1 of a head in llama2.c, i and i + size / 2 at
    Hugging Face.
    """
    count, rows, dim = weights.shape
    pairs = weights.view(count, rows // size, size // 2, 2, dim)
    return pairs.transpose(2, 3).reshape(count, rows, dim)


def read_pieces(path: Path, size: int) -> list[tuple[bytes, float]]:
    """Return pieces and scores of a tokenizer, by token id."""
    data, position = path.read_bytes(), 4  # after the length of the longest piece
    found = []
    for _ in range(size):
        score, length = struct.unpack("<fi", data[position : position + 8])
        position += 8 + length
        found.append((data[position - length : position], score))
    return found


def read_tokenizer(path: Path, size: int) -> PreTrainedTokenizerFast:
    """Return the tokenizer; ids 0, 1 and 2 are unknown, beginning and end."""
    pieces = [piece.decode() for piece, _ in read_pieces(path, size)]
    scores = [score for _, score in read_pieces(path, size)]
    names = ["<unk>", "<s>", "</s>", *(piece.replace(" ", SPACE) for piece in pieces[3:])]
    ids = {name: index for index, name in enumerate(names)}
    assert len(ids) == size, "a piece is there twice"
    bytes_end = 3 + 256
    # Every way to put a piece together, the best piece first.
    joins = [
        (scores[index], name[:cut], name[cut:])
        for index, name in enumerate(names)
        if index >= bytes_end
        for cut in range(1, len(name))
        if name[:cut] in ids and name[cut:] in ids
    ]
    merges = [(left, right) for _, left, right in sorted(joins, key=lambda join: -join[0])]
    raw = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    raw.normalizer = normalizers.Sequence(
        [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
    )
    raw.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<unk>",
    )
