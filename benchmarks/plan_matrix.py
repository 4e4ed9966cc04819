"""Tiny federations of all kinds: what `plan_ledger.py` plans, runs and compares."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, PreTrainedTokenizerFast

from trillium.config.experiment import Tree, parse_overrides

NUM_WORDS, NUM_ROWS = 60, 70
SPECIAL = ("[PAD]", "[UNK]", "[BOS]", "[EOS]")
_SIZES = {
    "hidden_size": 24,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
}
_GROUPED = {**_SIZES, "num_key_value_heads": 2}
_GPT2 = {"n_embd": 24, "n_head": 4, "n_inner": 40, "n_positions": 64}
ARCHITECTURES: Mapping[str, Mapping[str, Any]] = {
    "gpt2": {**_GPT2, "n_layer": 3},
    "gpt2_deep": {**_GPT2, "n_layer": 8},
    "bert": {**_SIZES, "num_hidden_layers": 3},
    "roberta": {**_SIZES, "num_hidden_layers": 4},
    "distilbert": {
        **{"dim": 24, "n_heads": 4, "hidden_dim": 40, "n_layers": 3},
        **{"max_position_embeddings": 64},
    },
    "llama": {**_GROUPED, "num_hidden_layers": 3},
    "llama_deep": {**_GROUPED, "num_hidden_layers": 7},
    "mistral": {**_GROUPED, "num_hidden_layers": 4},
    "gemma": {**_GROUPED, "num_hidden_layers": 3, "head_dim": 6},
    "gpt_neox": {**_SIZES, "num_hidden_layers": 3},
}
"""Models by name; what is before `_` is what `transformers` calls the architecture."""

Choices = Mapping[str, Sequence[str]]
"""Settings to draw one of, in words, by what they are about; an empty word leaves the default."""

SAME: Choices = {
    "model": tuple(f"model.id={name}" for name in ARCHITECTURES),
    "task": ("task=classification", "task=classification", "task=causal_lm"),
    "adapter": (
        "adapter={name: lora, r: 2}",
        "adapter={name: lora, r: 2}",
        "adapter={name: lora, r: 3, target_modules: all-linear, dropout: 0.1}",
        "adapter={name: lora, r: 2, dora: true}",
        "adapter=full",
        "adapter=full",
        "adapter=ia3",
        "adapter=bitfit",
        "adapter={name: bottleneck, size: 4, activation: gelu}",
        "adapter={name: prompt, num_tokens: 3}",
    ),
    "dropout": ("model.dropout=0", "model.dropout=0", "model.dropout=0.1"),
    "head": ("", "", "", "head=ridge", "head=class_means"),
    "steps": ("", "training.local_steps=1", "training.local_steps=3", "training.local_epochs=2"),
    "batch": ("training.batch_size=4", "training.batch_size=8"),
    "optimizer": (  # steps that rounding takes back would leave tensors as they were
        "",
        "model.dtype=bfloat16",
        "training.optimizer={name: sgd, lr: 0.5}",
        "training.optimizer={name: sgd, lr: 0.5, momentum: 0.9}",
        "training.optimizer={name: adafactor, lr: 0.01}",
    ),
    "clip": ("", "", "training.max_grad_norm=null"),
    "fleet": (
        "",
        "",
        "fleet.clients_per_round=2",
        "fleet={failure_rate: 0.3, min_replies: 1}",
    ),
    "up": (
        "",
        "",
        "wire.up=[cast]",
        "wire.up=[int8]",
        "wire.up=[int4]",
        "wire.up=[int2]",
        "wire.up=[sign]",
        "wire.up=[top_k]",
        "wire.up=[random_k]",
        "wire.up=[hadamard, int4]",
        "wire.up=[zstd]",
        "wire.up=[cast, zstd]",
        "wire.up=[{name: top_classes, k: 2}]",
        "wire.up=[log_probabilities]",
        "wire.up=[votes]",
    ),
    "down": (
        "",
        "",
        "wire.down=[cast]",
        "wire.down=[int8]",
        "wire.down=[{name: int4, rounding: nearest}]",
        "wire.down=[zstd]",
        "wire.down=[{name: top_classes, k: 2}]",
        "wire.down=[log_probabilities]",
    ),
}

FRAMEWORKS: Mapping[str, Choices] = {
    "fedllm": {
        "upload": ("", "", "framework.upload=parameters", "framework.upload=gradient"),
        "download": ("", "framework.download=change"),
        "mask": ("", "", "framework.mask=ffa", "framework.mask=rolora"),
        "aggregator": (
            *("", "", ""),
            *(
                f"framework.aggregator={name}"
                for name in ("stack", "fedex", "svd", "hetlora", "rank_wise", "median")
            ),
            "framework.aggregator={name: svd, fold_rest: true}",
        ),
        "drift": ("", "", "", "framework.drift=prox", "framework.drift=scaffold"),
        "local": ("", "", "framework.local=[lora_B]", "framework.local=[head]"),
        "ranks": ("", "", "tiers={small: {clients: [client-0], rank: 1}}"),
    },
    "kd": {
        "direction": ("", "framework.direction=server", "framework.direction=client"),
        "size": ("", "framework.public_per_round=7"),
        "cache": ("", "", "framework.cache_rounds=2"),
        "labels": ("", "framework.public_labels=true"),
        "ensemble": ("", "", "framework.ensemble=confidence", "framework.ensemble=class_counts"),
        "epochs": ("", "framework.distill_epochs=2"),
        "public": ("", "", "data.public={name: words, longest: 9, shortest: 3}"),
        "tiers": ("", "", "tiers={small: {clients: [client-0], adapter: {r: 1}}}"),
    },
    "split": {
        "shape": ("", "", "framework.shape=u", "framework={shape: u, tail: 3}"),
        "cut": ("", "framework.cut=2"),
        "mode": (
            *("", ""),
            *(f"framework.mode={mode}" for mode in ("relay", "splitfed_v1", "splitfed_v2")),
        ),
        "train": ("", "", "framework.train=server", "framework.train=client"),
        "cache": ("", "", "framework.cache=false"),
        "ahead": ("", "", "framework.staleness=1"),
        "local": ("", "", "", "framework.local_rounds=1"),
        "delta": ("", "", "framework.delta={}"),
        "defence": ("", "", "framework.defence=gaussian"),
    },
    "fedkseed": {"seeds": ("", "framework.num_seeds=16")},
    "local_only": {},
    "centralised": {},
}
SHARES = {"fedllm": 9, "kd": 9, "split": 9, "fedkseed": 1, "local_only": 1, "centralised": 1}
"""How often a framework is drawn, beside the others."""

BASE = (
    *("model.random_weights=true", "model.device=cpu", "data.num_clients=3", "rounds=2"),
    *("data.public_size=12", "data.test_fraction=0.3", "training.max_length=24"),
)


@dataclass(frozen=True)
class Case:
    """One federation of the matrix.

    Attributes:
        words: its settings beside `BASE`, those that are not left out.
    """

    words: tuple[str, ...]

    @property
    def label(self) -> str:
        """Its settings on one line."""
        return " ".join(self.words)

    def tree(self, hub: Path) -> Tree:
        """Return its settings over models and data in a folder."""
        found = parse_overrides([*BASE, *self.words])
        found["model"]["id"] = str(hub / found["model"]["id"])
        found["data"]["source"] = {"name": "files", "train": str(hub / f"{found['task']}.jsonl")}
        return found


def draw_cases(seed: int) -> Iterator[Case]:
    """Yield different federations without end, the same ones for the same seed."""
    draw, seen = random.Random(seed), set[Case]()
    while True:
        name = draw.choices([*SHARES], [*SHARES.values()])[0]
        own = _drawn(draw, FRAMEWORKS[name], 0.35)
        case = Case((f"framework={name}", *_drawn(draw, SAME, 0.6), *own))
        if case not in seen:
            seen.add(case)
            yield case


def _drawn(draw: random.Random, choices: Choices, share: float) -> list[str]:
    """Return one setting about each thing; about so many, at random, where it can be left out."""
    found = []
    for options in choices.values():
        word = draw.choice(options) if "" not in options or draw.random() < share else ""
        found += [word] if word else []
    return found


def write_hub(folder: Path) -> Path:
    """Write all models, without weights, and data of both tasks into a folder."""
    words = {word: index for index, word in enumerate(SPECIAL)}
    words |= {f"w{i}": len(SPECIAL) + i for i in range(NUM_WORDS)}
    raw = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = {"pad_token": "[PAD]", "unk_token": "[UNK]", "bos_token": "[BOS]", "eos_token": "[EOS]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, **ends)
    common = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "vocab_size": len(words)}
    for name, sizes in ARCHITECTURES.items():
        kind = name.removesuffix("_deep")
        # Drawn wide, so that gradients are far from zero: a step must not be lost in rounding.
        config = AutoConfig.for_model(kind, **common, **sizes, initializer_range=0.3)
        config.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    draw = torch.Generator().manual_seed(0)

    def text(low: int, high: int) -> str:
        length = int(torch.randint(low, high, (), generator=draw))
        return " ".join(f"w{i}" for i in torch.randint(NUM_WORDS, (length,), generator=draw))

    rows = [{"text": text(4, 22), "label": f"class {index % 3}"} for index in range(NUM_ROWS)]
    pairs = [{"prompt": text(2, 10), "completion": text(1, 10)} for _ in range(NUM_ROWS)]
    for task, found in (("classification", rows), ("causal_lm", pairs)):
        lines = "".join(json.dumps(row) + "\n" for row in found)
        (folder / f"{task}.jsonl").write_text(lines, encoding="utf-8")
    return folder
