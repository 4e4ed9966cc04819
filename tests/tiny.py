"""Tiny federations for tests: model folders in hub format, data files, built experiments.

No layer is square: hidden size, MLP width, and the width of keys and values all differ.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedTokenizerFast

from trillium.config.experiment import (
    ExperimentConfig,
    acting,
    experiment,
    merge,
    parse_overrides,
)
from trillium.experiment.run import Experiment, build
from trillium.federation.engine import Gathered, Saved
from trillium.federation.parts import Lost
from trillium.frameworks.kd.protocol import KD
from trillium.models.blocks import base_model
from trillium.rng import generator
from trillium.tasks import IGNORE, Example
from trillium.tasks.batches import epoch
from trillium.wire.kinds import Tensors
from trillium.wire.message import Message, decode, encode

NUM_WORDS = 40
NUM_ROWS = 60
SPECIAL = ("[PAD]", "[UNK]", "[BOS]", "[EOS]")
VOCABULARY = len(SPECIAL) + NUM_WORDS
_COMMON = dict(vocab_size=VOCABULARY, pad_token_id=0, bos_token_id=2, eos_token_id=3)
# Weights are drawn wide, so that logits and gradients are far from zero.
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": dict(n_embd=12, n_layer=3, n_head=3, n_inner=20, n_positions=64, initializer_range=0.3),
    "bert": dict(
        hidden_size=12,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=20,
        max_position_embeddings=64,
        initializer_range=0.3,
    ),
    "llama": dict(
        hidden_size=12,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=4,
        intermediate_size=20,
        max_position_embeddings=64,
        initializer_range=0.3,
    ),
}
# Llama's norms and rotary embeddings compute in float32 whatever the model's dtype.
EXACT = {"gpt2": 1e-10, "bert": 1e-10, "llama": 1e-6}
TARGETS = {
    "gpt2": "[c_attn, c_fc, c_proj]",
    "bert": "[query, value, intermediate.dense]",
    "llama": "[q_proj, k_proj, up_proj, down_proj]",
}


def write_hub(folder: Path) -> Path:
    """Write model folders (configuration and tokenizer; weights are drawn) and data files."""
    words = {word: index for index, word in enumerate(SPECIAL)}
    words |= {f"w{i}": len(SPECIAL) + i for i in range(NUM_WORDS)}
    raw = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="[PAD]",
        unk_token="[UNK]",
        bos_token="[BOS]",
        eos_token="[EOS]",
    )
    for name, options in CONFIGS.items():
        AutoConfig.for_model(name, **_COMMON, **options).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    draw = torch.Generator().manual_seed(5)

    def text(low: int, high: int) -> str:
        length = int(torch.randint(low, high, (), generator=draw))
        return " ".join(f"w{i}" for i in torch.randint(NUM_WORDS, (length,), generator=draw))

    rows = []
    for index in range(NUM_ROWS):
        label = index % 3
        rows.append({"text": f"w{label} {text(3, 12)}", "label": f"class {label}"})
    _write_jsonl(folder / "classification.jsonl", rows)
    several = []
    for index in range(NUM_ROWS):
        own = [n for n in range(4) if index >> n & 1]
        said = " ".join([*(f"w{n}" for n in own), text(3, 12)])
        several.append({"text": said, "label": [f"label {n}" for n in own]})
    _write_jsonl(folder / "multi_label.jsonl", several)
    names = ["O", "B-a", "I-a", "B-b", "I-b"]
    tagged = []
    for row in rows:
        tokens = row["text"].split()
        tags = [names[int(token[1:]) % 5] for token in tokens]
        tagged.append({"tokens": tokens, "label": tags})
    _write_jsonl(folder / "token_classification.jsonl", tagged)
    values = [
        {"text": row["text"], "label": [len(row["label"]) - 1.5, n / 60]}
        for n, row in enumerate(several)
    ]
    _write_jsonl(folder / "regression.jsonl", values)
    pairs = [{"prompt": text(2, 8), "completion": text(1, 6)} for _ in range(NUM_ROWS)]
    _write_jsonl(folder / "causal_lm.jsonl", pairs)
    answers = [
        {"prompt": pair["prompt"], "chosen": pair["completion"], "rejected": f"w0 {text(1, 6)}"}
        for pair in pairs
    ]
    _write_jsonl(folder / "preference.jsonl", answers)
    return folder


def _write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def federation(
    hub: Path, *words: str, model: str = "gpt2", task: str = "classification"
) -> Experiment:
    """Build a float64 experiment from `key=value` words laid over small defaults."""
    return build(experiment_config(hub, *words, model=model, task=task))


def experiment_config(
    hub: Path, *words: str, model: str = "gpt2", task: str = "classification"
) -> ExperimentConfig:
    """Return its configuration."""
    defaults = parse_overrides(
        [
            f"model.id={hub / model}",
            "model.random_weights=true",
            "model.dtype=float64",
            "model.device=cpu",
            "model.dropout=0.0",
            f"task={task}",
            f"data.source={{name: files, train: {hub / task}.jsonl}}",
            "data.num_clients=3",
            "data.public_size=12",
            "data.test_fraction=0.3",
            "rounds=2",
            "training.batch_size=8",
            "training.optimizer.lr=0.01",
            "wire={up: [], down: []}",
            f"adapter={{name: lora, r: 3, alpha: 5, target_modules: {TARGETS[model]}}}",
        ]
    )
    own = parse_overrides(words)
    tree = acting(merge(defaults, own), own)[0]
    config = experiment(tree)
    # Whether or not there is a public set, clients have the same rows.
    return config if config.public_size else experiment(merge({"data": {"set_aside": 12}}, tree))


def perturb(federation: Experiment) -> Experiment:
    """Move all initial values away from LoRA's zeros, so that one step moves every parameter."""
    draw = torch.Generator().manual_seed(9)
    for tensor in federation.model.initial.values():
        tensor += 0.1 * torch.randn(tensor.shape, generator=draw, dtype=tensor.dtype)
    federation.server.state = federation.model.state()
    return federation


def plain_model(federation: Experiment) -> nn.Module:
    """Return an ordinary PEFT module with the federation's initial values."""
    model = federation.model
    module = copy.deepcopy(model.mount(model.state()))
    module.train()
    return module


def plain_batch(examples: list[Example]) -> tuple[dict[str, Tensor], Tensor]:
    """Pad on the right to the longest example; labels become those that Transformers takes."""
    pad = nn.utils.rnn.pad_sequence
    ids = pad([e.input_ids for e in examples], batch_first=True, padding_value=0)
    mask = pad([torch.ones_like(e.input_ids) for e in examples], batch_first=True)
    labels = [e.labels for e in examples]
    if labels[0].dim() == 0:
        return {"input_ids": ids, "attention_mask": mask}, torch.stack(labels)
    if labels[0].dim() == 2:
        return {"input_ids": ids, "attention_mask": mask}, torch.cat(labels).to(torch.float64)
    padded = pad(labels, batch_first=True, padding_value=IGNORE)
    return {"input_ids": ids, "attention_mask": mask}, padded


def plain_loss(module: nn.Module, examples: list[Example]) -> Tensor:
    """Return the mean cross-entropy, as Hugging Face's own casts the logits of language models.

    Where a text has several labels, or a token has one, it is Hugging Face's own.
    """
    inputs, labels = plain_batch(examples)
    is_tagged = "TokenClassification" in type(base_model(module)).__name__
    if labels.is_floating_point() or is_tagged:
        found: Tensor = module(**inputs, labels=labels).loss
        return found
    logits: Tensor = module(**inputs).logits
    if labels.dim() == 2:
        logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    return nn.functional.cross_entropy(logits, labels, ignore_index=IGNORE)


def plain_steps(
    module: nn.Module,
    chunks: Iterable[list[Example]],
    optimizer: torch.optim.Optimizer,
    clip: float | None = None,
    loss: Callable[[nn.Module, list[Example]], Tensor] = plain_loss,
) -> list[float]:
    """Take one step per batch, as any PyTorch tutorial does; return the losses."""
    losses = []
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for chunk in chunks:
        optimizer.zero_grad()
        value = loss(module, chunk)
        value.backward()  # type: ignore[no-untyped-call]
        if clip is not None:
            nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        losses.append(float(value.detach()))
    return losses


def round_batches(federation: Experiment, number: int, client: int = 0) -> list[list[Example]]:
    """Return the batches that a client of the federation sees in a round."""
    own, training = federation.clients[client], federation.config.training
    draw = generator(federation.config.seed, "batches", own.name, number)
    num_steps = training.num_steps(len(own.examples))
    chunks: list[list[Example]] = []
    while len(chunks) < num_steps:
        chunks += epoch(own.examples, training.batch_size, draw)
    return chunks[:num_steps]


def trained(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trainable parameters of a module by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def distance(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> float:
    """Return the largest absolute difference; names must agree."""
    assert left.keys() == right.keys()
    return max(float((left[n].detach() - right[n].detach()).abs().max()) for n in left)


def run_rounds(federation: Experiment, rounds: int) -> list[dict[str, Any]]:
    """Run the framework's rounds alone, without evaluation; return their figures."""
    federation.config.framework.start(federation.server, federation.fleet)
    return [run_round(federation, number) for number in range(1, rounds + 1)]


def run_round(federation: Experiment, number: int) -> dict[str, Any]:
    """Run one round alone, and return its figures."""
    federation.server.round = number
    federation.fleet.begin_round(number)
    return federation.config.framework.round(federation.server, federation.fleet)


class Recorder:
    """An engine that notes what crosses, in order: client, request, reply."""

    def __init__(self, federation: Experiment) -> None:
        self.inner = federation.fleet.engine
        self.log: list[tuple[str, bytes, bytes]] = []
        federation.fleet.engine = self

    @property
    def clients(self) -> list[str]:
        return list(self.inner.clients)

    def carry(self, requests: Mapping[str, bytes]) -> Iterator[tuple[str, bytes | Lost]]:
        for client, reply in self.inner.carry(requests):
            assert isinstance(reply, bytes)
            self.log.append((client, requests[client], reply))
            yield client, reply

    def gather(self, need: int) -> Gathered:
        return self.inner.gather(need)

    def save(self, number: int) -> Saved | None:
        return self.inner.save(number)

    def restore(self, number: int, held: Mapping[str, int]) -> None:
        self.inner.restore(number, held)


def public_set(federation: Experiment) -> list[Example]:
    """Return the public set as the clients get it."""
    framework = federation.config.framework
    assert isinstance(framework, KD)
    return framework.public_set(federation.server)


def without_cost(reply: bytes) -> Message:
    """Decode a reply and drop what differs from run to run: the measured seconds."""
    message = decode(reply)
    tensors = {name: t for name, t in message.tensors.items() if name != "control/cost"}
    return Message(message.verb, tensors, message.meta)


def digest(reply: bytes) -> str:
    """Return a hash of a reply, measured cost left out."""
    return hashlib.sha256(encode(without_cost(reply))).hexdigest()


def tensors_digest(tensors: Tensors) -> str:
    """Return a hash of names, shapes and values."""
    state = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().contiguous().cpu()
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        state.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


def frozen_digest(federation: Experiment) -> str:
    """Return a hash of everything in the resident model that no client may change."""
    module = federation.model.module
    frozen = {n: p for n, p in module.named_parameters() if not p.requires_grad}
    return tensors_digest({**frozen, **dict(module.named_buffers())})


def without_seconds(lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The evaluations of a run, without what differs each time."""
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]
