"""The models of benchmarks: weights and tokenizers of llama2.c are read right."""

from __future__ import annotations

import importlib
import itertools
import math
import random
import struct
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
DIM, HIDDEN, LAYERS, HEADS, KV_HEADS, LENGTH = 24, 40, 2, 6, 3, 64
SIZE = DIM // HEADS
WORDS = [b" t", b"he", b" a", b" the", b"in", b"ng", b"ing", b"he r", b"\xc3\xa9", b"  "]


def benchmark(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module(name)


# A model of llama2.c


def pieces() -> list[bytes]:
    """Special tokens, all bytes, what can be joined, and letters, the likeliest first."""
    letters = [bytes([code]) for code in range(32, 127)]
    named = [f"<0x{byte:02X}>".encode() for byte in range(256)]
    return [b"<unk>", b"\n<s>\n", b"\n</s>\n", *named, *WORDS, *letters]


def write_tokenizer(path: Path) -> None:
    found = pieces()
    data = struct.pack("<i", max(map(len, found)))
    for index, piece in enumerate(found):
        data += struct.pack("<fi", float(min(0, 259 - index)), len(piece)) + piece
    path.write_bytes(data)


def write_checkpoint(path: Path, tied: bool) -> dict[str, np.ndarray[Any, Any]]:
    """Draw a checkpoint and return its tensors by their names in llama2.c."""
    size, kv = len(pieces()), KV_HEADS * SIZE
    shapes = {
        "token_embedding_table": (size, DIM), "rms_att": (LAYERS, DIM), "wq": (LAYERS, DIM, DIM),
        "wk": (LAYERS, kv, DIM), "wv": (LAYERS, kv, DIM), "wo": (LAYERS, DIM, DIM),
        "rms_ffn": (LAYERS, DIM), "w1": (LAYERS, HIDDEN, DIM), "w2": (LAYERS, DIM, HIDDEN),
        "w3": (LAYERS, HIDDEN, DIM), "rms_final": (DIM,), "freq": (2, LENGTH, SIZE // 2),
    }  # fmt: skip
    if not tied:
        shapes["wcls"] = (size, DIM)
    draw = np.random.default_rng(0)
    found = {name: 0.4 * draw.standard_normal(shape) for name, shape in shapes.items()}
    found = {name: tensor.astype("<f4") for name, tensor in found.items()}
    sign = 1 if tied else -1
    header = (DIM, HIDDEN, LAYERS, HEADS, KV_HEADS, sign * size, LENGTH)
    path.write_bytes(struct.pack("<7i", *header) + b"".join(t.tobytes() for t in found.values()))
    return found


def forward(w: dict[str, np.ndarray[Any, Any]], tokens: list[int]) -> np.ndarray[Any, Any]:
    """Logits `(seq, vocabulary)` as run.c computes them, position by position."""

    def norm(x: Any, weight: Any) -> Any:
        return weight * x / np.sqrt((x * x).mean() + 1e-5)

    def turned(x: Any, position: int) -> Any:
        out = x.copy()
        for i in range(0, len(x), 2):
            angle = position / 10000.0 ** ((i % SIZE) / SIZE)
            cos, sin = math.cos(angle), math.sin(angle)
            out[i], out[i + 1] = x[i] * cos - x[i + 1] * sin, x[i] * sin + x[i + 1] * cos
        return out

    keys: list[list[Any]] = [[] for _ in range(LAYERS)]
    values: list[list[Any]] = [[] for _ in range(LAYERS)]
    logits = []
    for position, token in enumerate(tokens):
        x = w["token_embedding_table"][token].astype(np.float64)
        for layer in range(LAYERS):
            h = norm(x, w["rms_att"][layer])
            q = turned(w["wq"][layer] @ h, position)
            keys[layer].append(turned(w["wk"][layer] @ h, position))
            values[layer].append(w["wv"][layer] @ h)
            out = np.zeros(DIM)
            for head in range(HEADS):
                own = slice(head * SIZE, (head + 1) * SIZE)
                group = head // (HEADS // KV_HEADS)
                theirs = slice(group * SIZE, (group + 1) * SIZE)
                scores = np.array([q[own] @ k[theirs] for k in keys[layer]]) / math.sqrt(SIZE)
                shares = np.exp(scores - scores.max())
                shares /= shares.sum()
                rows = zip(shares, values[layer], strict=True)
                out[own] = sum(s * v[theirs] for s, v in rows)
            x = x + w["wo"][layer] @ out
            h = norm(x, w["rms_ffn"][layer])
            gate = w["w1"][layer] @ h
            x = x + w["w2"][layer] @ (gate / (1 + np.exp(-gate)) * (w["w3"][layer] @ h))
        x = norm(x, w["rms_final"])
        logits.append(w.get("wcls", w["token_embedding_table"]) @ x)
    return np.stack(logits)


def encode(text: str, table: list[bytes], scores: list[float]) -> list[int]:
    """Tokens as run.c finds them: the best pair is joined, again and again."""
    ids = {piece: index for index, piece in enumerate(table)}
    tokens = [ids[b" "]] if text else []
    for char in text:
        data = char.encode()
        tokens += [ids[data]] if data in ids else [byte + 3 for byte in data]
    while True:
        joined = [ids.get(table[a] + table[b]) for a, b in itertools.pairwise(tokens)]
        options = [(scores[t], -place) for place, t in enumerate(joined) if t is not None]
        if not options:
            return tokens
        place = -max(options)[1]
        found = joined[place]
        assert found is not None
        tokens[place : place + 2] = [found]


@pytest.mark.parametrize("tied", [True, False])
def test_a_converted_model_computes_what_llama2c_does(
    tied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tokenizer(tmp_path / "tok.bin")
    weights = write_checkpoint(tmp_path / "model.bin", tied)
    script = benchmark("llama2c", monkeypatch)
    script.convert(tmp_path / "model.bin", tmp_path / "tok.bin", tmp_path / "hub")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hub").eval()
    tokens = [1, 270, 300, 5, 300, 281, 265]
    with torch.no_grad():
        found = model(input_ids=torch.tensor([tokens])).logits[0].numpy()
    expected = forward(weights, tokens)
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(found, expected, atol=1e-4)
    # Pairs of rows that are not reordered are turned by other angles.
    monkeypatch.setattr(script, "_halves", lambda weights, size: weights)
    wrong = script.read_model(tmp_path / "model.bin")[0].eval()
    with torch.no_grad():
        other = wrong(input_ids=torch.tensor([tokens])).logits[0].numpy()
    assert np.abs(other - expected).max() > 1e-2


def test_a_converted_tokenizer_finds_the_tokens_of_llama2c(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tokenizer(tmp_path / "tok.bin")
    tokenizer = benchmark("llama2c", monkeypatch).read_tokenizer(
        tmp_path / "tok.bin", len(pieces())
    )
    tokenizer.save_pretrained(tmp_path / "hub")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hub")
    scores = [float(min(0, 259 - index)) for index in range(len(pieces()))]
    draw = random.Random(0)
    for _ in range(200):
        text = "".join(draw.choice("the ring  éü\n漢<>") for _ in range(draw.randrange(1, 30)))
        found = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert found == encode(text, pieces(), scores)
        assert tokenizer.decode(found) == text


@pytest.mark.shared_data("stories260k")
def test_the_real_model_tells_a_story(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    origin = SHARED / "stories260k"
    script = benchmark("llama2c", monkeypatch)
    script.convert(origin / "stories260K.bin", origin / "tok512.bin", tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    begin = torch.tensor([[tokenizer.bos_token_id]])
    told = model.generate(begin, max_new_tokens=40, do_sample=False)[0]
    # What llama2.c says with temperature 0.
    expected = "Once upon a time, there was a little girl named Lily. She loved to play outside in"
    assert tokenizer.decode(told, skip_special_tokens=True).startswith(expected)
