"""The benchmarks of KD-FedLLM on language models: real weights are read right, tables hold what ran."""

from __future__ import annotations

import csv
import importlib
import itertools
import json
import math
import random
import struct
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import zstandard
from transformers import AutoModelForCausalLM, AutoTokenizer

from trillium.config.experiment import merge, parse_overrides, read_yaml
from trillium.wire import soft_labels

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


# Memory


def test_parts_stay_as_large_while_the_vocabulary_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    script = benchmark("kd_memory", monkeypatch)
    report = benchmark("kd_memory_report", monkeypatch)
    monkeypatch.setattr(soft_labels, "CHUNK", 2**18)
    for name, value in {"TOKENS": 8, "NUM_PUBLIC": 6, "BATCH": 4}.items():
        monkeypatch.setattr(script, name, value)
    cases = [
        {
            **script.asdict(case),
            "stages": {name: script.asdict(peak) for name, peak in script.measure(case).items()},
        }
        for naive in (False, True)
        for case in (script.Case(9_000, naive=naive), script.Case(27_000, naive=naive))
    ]
    small, large, naive_small, naive_large = (
        {name: report.working(stage) for name, stage in case["stages"].items()} for case in cases
    )
    # Half of a chunk for what grows all the same: single rows, and one number for each token.
    for stage in report.PATH:
        assert large[stage] < 1.3 * small[stage] + 2**19, stage
    for stage in ("predict", "teacher", "distil"):
        assert naive_large[stage] > 2.5 * naive_small[stage], stage
    content = {
        "chunk_bytes": 2**20, "examples": 6, "tokens": 8, "clients": 3, "batch_size": 4,
        "cases": cases, "environment": {"versions": {}, "argv": ["x"], "git_sha": "", "device": "cpu"},
    }  # fmt: skip
    assert "| distil |" in report.markdown(content)
    assert report.plot(content).startswith(b"\x89PNG")


# Language models


def write_data(folder: Path) -> None:
    """The folders that the script reads, with a model that has learnt nothing."""
    for name in ("e2e_nlg", "stories260k", "text"):
        (folder / name).mkdir(parents=True)
    write_tokenizer(folder / "stories260k" / "tok512.bin")
    write_checkpoint(folder / "stories260k" / "stories260K.bin", tied=True)
    draw = random.Random(0)
    rows = []
    for number in range(60):
        place = ("restaurant", "pub", "coffee shop")[number % 3]
        name = f"The {draw.choice(['Ring', 'Inn', 'King'])} {number // 2}"
        rows.append((f"name[{name}], eatType[{place}]", f"{name} is a {place}."))
    for name, part in {"devset": rows[:30], "testset_w_refs": rows[30:]}.items():
        with (folder / "e2e_nlg" / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("mr", "ref"), *part])
    text = "\n\n".join(f"There is the thing {i}, in the ring." for i in range(2000))
    compressed = zstandard.ZstdCompressor().compress(text.encode())
    (folder / "text" / "sgd.txt.zst").write_bytes(compressed)


SMALL = [
    "rounds=1", "rows.of_a_client=6", "rows.test=9", "data.public_size=6", "training.max_length=48",
    "warm_up.megabytes=0.05", "warm_up.models.gpt2.tokenizer=300", "warm_up.models.gpt2.steps=2",
    "warm_up.models.large.steps=2", "warm_up.models.large.sizes.num_hidden_layers=1",
]  # fmt: skip


def test_the_small_run_fills_every_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = benchmark("kd_language_models", monkeypatch)
    recipe = merge(read_yaml(BENCHMARKS / "kd_language_models.yaml"), parse_overrides(SMALL))
    assert recipe["titles"].keys() == recipe["arms"].keys()
    for arm in recipe["arms"].values():  # all of them can be run
        script.configuration(recipe, arm, tmp_path / "runs" / "prepared")
    wanted = ("alone_two", "kd_two", "kd_large")
    recipe["arms"] = {name: recipe["arms"][name] for name in wanted}
    write_data(tmp_path / "data")
    content = script.measure(recipe, tmp_path / "data", tmp_path / "runs")
    content |= {"settings": recipe}
    content["environment"] = {"versions": {}, "argv": ["x"], "git_sha": "", "device": "cpu"}
    splits = {
        split: [json.loads(line)["prompt"] for line in path.read_text().splitlines()]
        for split in ("train", "test")
        for path in [tmp_path / "runs" / "prepared" / f"{split}.jsonl"]
    }
    assert len(splits["test"]) == 9
    assert not {*splits["train"]} & {*splits["test"]}
    models = content["arms"]["kd_two"]["models"]
    assert {side: found["model"] for side, found in models.items()} == {
        "client-0": "stories", "client-1": "stories", "client-2": "gpt2", "server": "stories",
    }  # fmt: skip
    assert content["arms"]["kd_large"]["models"]["server"]["model"] == "large"
    assert "server" not in content["arms"]["alone_two"]["models"]
    assert 0 < content["arms"]["kd_two"]["rounds"][-1]["aligned_rows"] <= 1
    assert content["arms"]["kd_two"]["kinds"]["up logits"] > 0
    assert content["arms"]["alone_two"]["kinds"].keys() <= {"up control", "down control"}
    table = benchmark("kd_language_models_report", monkeypatch).markdown(content)
    assert all(recipe["titles"][arm] in table for arm in wanted)
    assert str(tmp_path) not in table + json.dumps({**content, "settings": {}})


def test_bits_per_byte_do_not_depend_on_the_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = benchmark("kd_language_models", monkeypatch)

    class Tokenizer:
        bos_token_id, eos_token_id = None, 0

        def __init__(self, width: int) -> None:
            self.width = width

        def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
            return {"input_ids": [1] * (len(text) // self.width)}

    rows = script.Dataset.from_dict({"prompt": ["abcd"], "completion": ["abcdefgh"]})
    found = {}
    for width in (1, 4):
        # Each byte costs one bit, and the end nothing.
        num_tokens = 8 // width + 1
        loss = 8 * math.log(2) / num_tokens
        found[width] = script.bits_per_byte(loss, rows, Tokenizer(width), 64)
    assert found == {1: pytest.approx(1.0), 4: pytest.approx(1.0)}
