"""Peak memory of KD-FedLLM on language models as the vocabulary grows, step by step of a round.

A small decoder with random weights goes through what a round of distillation does with soft labels: a
client predicts and encodes, the server translates between vocabularies and makes a teacher of three
opinions, a student distils. Beside it stand a training step of a client and a look at held-out rows.
From 8,192 classes on, none of these has the logits of all tokens at once.

    OMP_NUM_THREADS=1 python benchmarks/kd_memory.py
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, PreTrainedTokenizerFast

from trillium.config.experiment import experiment
from trillium.experiment.environment import environment
from trillium.experiment.run import Experiment, build
from trillium.files import write_atomic
from trillium.frameworks.kd.alignment.labels import translate_labels
from trillium.frameworks.kd.alignment.pieces import Pieces
from trillium.frameworks.kd.alignment.sequence import Alignment
from trillium.frameworks.kd.alignment.vocabulary import Vocabularies
from trillium.frameworks.kd.distillation import Loss, distillation_objective, predict
from trillium.frameworks.kd.opinion import Opinion
from trillium.frameworks.kd.protocol import KD
from trillium.frameworks.kd.teacher import make_teacher, predictions
from trillium.quiet import quiet
from trillium.report import human
from trillium.report.markdown import table
from trillium.tasks.batches import in_order
from trillium.training.loop import task_objective
from trillium.training.meters import Meter, resident_tensors
from trillium.wire.soft_labels import CHUNK

RESULTS = Path(__file__).resolve().parent / "results"
VOCABULARIES = (1_000, 4_000, 8_000, 16_000, 50_257, 151_936)  # the last two: GPT-2's, Qwen's
SPECIAL = ("[PAD]", "[UNK]", "[BOS]", "[EOS]")
TOKENS = 32  # of a prompt, and of its response
NUM_PUBLIC, NUM_CLIENTS, BATCH = 12, 3, 8
TEMPERATURE = 1.0
CODEC = {"name": "top_classes", "k": 16}
PATH = ("predict", "translate", "teacher", "distil")  # what handles soft labels
Peaks = dict[str, int]
T = TypeVar("T")


def federation(vocabulary: int, folder: Path) -> Experiment:
    """Build the federation whose model and data are drawn at random."""
    words = {word: index for index, word in enumerate(SPECIAL)}
    words |= {f"w{index}": index for index in range(len(SPECIAL), vocabulary)}
    raw = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = dict(zip(("pad_token", "unk_token", "bos_token", "eos_token"), SPECIAL, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=raw, **names).save_pretrained(folder)
    sizes = {"hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
    AutoConfig.for_model(
        "llama", vocab_size=vocabulary, tie_word_embeddings=True, **sizes
    ).save_pretrained(folder)
    draw = torch.Generator().manual_seed(0)
    rows = []
    for _ in range(NUM_PUBLIC + NUM_CLIENTS * BATCH + BATCH):
        drawn = torch.randint(len(SPECIAL), vocabulary, (2, TOKENS), generator=draw)
        prompt, completion = (" ".join(f"w{i}" for i in part) for part in drawn.tolist())
        rows.append({"prompt": prompt, "completion": completion})
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "rows.jsonl").write_text(lines, encoding="utf-8")
    return build(
        experiment(
            {
                "rounds": 1,
                "framework": {"name": "kd", "temperature": TEMPERATURE},
                "task": "causal_lm",
                "model": {"id": str(folder), "random_weights": True, "device": "cpu"},
                "data": {
                    "source": {"name": "files", "train": str(folder / "rows.jsonl")},
                    "num_clients": NUM_CLIENTS,
                    "public_size": NUM_PUBLIC,
                    "test_fraction": BATCH / len(rows),
                },
                "adapter": {"name": "lora", "r": 4, "target_modules": ["q_proj", "v_proj"]},
                "training": {"batch_size": BATCH, "max_length": 2 * TOKENS + 2},
                "wire": {"up": [CODEC], "down": [CODEC]},
            }
        )
    )


def measure(vocabulary: int) -> Peaks:
    """Return the peak of each step beside the model's own: weights, and while it trains Adam's."""
    with tempfile.TemporaryDirectory() as folder:
        fed = federation(vocabulary, Path(folder))
    found: Peaks = {}
    module = fed.model.module
    weights = sum(t.nbytes for t in resident_tensors(module))
    trained = 3 * sum(p.nbytes for p in module.parameters() if p.requires_grad)

    def step(name: str, work: Callable[[], T], trains: bool = False) -> T:
        meter = Meter({})
        with meter.measure(name, lambda: resident_tensors(module)):
            result = work()
        found[name] = meter.read().peak_bytes - weights - (trained if trains else 0)
        return result

    server, client, framework = fed.server, fed.clients[0], fed.config.framework
    assert isinstance(framework, KD)
    task, public = server.task, server.public
    num_rows, num_classes = shape = predictions(server, public)
    loop = client.loop("predict", client.model.state())
    writer = client.wire.writer("teach", "logits/public", 1, shape, "up")
    labels = step("predict", lambda: predict(loop, task, public, writer))
    labels.check()

    other = permuted(num_classes)
    other.map()  # what it weighs is of the vocabulary, not of the labels
    rows = Alignment(torch.arange(num_rows), torch.zeros(num_rows, dtype=torch.int8))
    writer = fed.fleet.wire.writer("teach", "logits/public", 1, shape, "up")
    step("translate", lambda: translate_labels(labels, rows, other, writer))

    opinions = [Opinion(1.0, 0.0, labels) for _ in fed.clients]
    writer = fed.fleet.wire.writer("learn", "logits/teacher", 1, shape, "down")
    _, teacher = step("teacher", lambda: make_teacher(framework, server, opinions, public, writer))

    state, training = client.model.state(), client.training
    chunks = list(in_order(public, BATCH))
    loop = client.loop("distil", state)
    objective = distillation_objective(task, public, teacher, Loss(TEMPERATURE))

    def fit() -> object:
        return loop.fit(chunks, objective, training, client.progress, len(chunks))

    step("distil", fit, trains=True)

    # No part of distillation: the client's own step, and a look at held-out rows.
    loop, own = client.loop("train", state), task_objective(task, client.examples)
    batch = client.examples[:BATCH]
    step("own step", lambda: loop.fit([batch], own, training, client.progress, 1), trains=True)
    step("evaluate", lambda: client.evaluate(state, BATCH * (2 * TOKENS + 8)))
    return found


def permuted(size: int) -> Vocabularies:
    """Return two vocabularies of the same words, in opposite order."""
    words = tuple(f" w{index}" for index in range(size))
    return Vocabularies(Pieces(words, words), Pieces(words[::-1], words[::-1]), size, size)


def markdown(content: Mapping[str, Any]) -> str:
    """Return the table."""
    cases = content["cases"]
    titles = ["Vocabulary", *(f"{case['vocabulary']:,}" for case in cases)]
    rows = [
        [step, *(human.prefixed(case["peaks"][step], "B") for case in cases)]
        for step in cases[0]["peaks"]
    ]
    chunk = human.prefixed(content["chunk_bytes"], "B")
    text = (
        f"A Llama of two blocks of width 64 with random weights; {content['examples']} public texts "
        f"of {content['tokens']} response tokens, {content['clients']} clients, the codec "
        f"`top_classes` with k = {CODEC['k']}, LoRA; distillation in batches of "
        f"{content['batch_size']} texts. Bytes of all tensors that lived at once, the model's own left "
        f"out. At most {chunk} of soft labels are decoded at once. `own step` and `evaluate` are no "
        "part of distillation: a training step of a client, and a look at held-out rows."
    )
    made = content["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    how = f"Made by `{' '.join(made['argv'])}` of commit {made['git_sha']}, with {versions}."
    lines = ["# Peak memory of KD-FedLLM on language models", "", text, "", *table(titles, rows)]
    return "\n".join([*lines, "", how, ""])


def main() -> None:
    """Measure, print the table and write the results."""
    parser = argparse.ArgumentParser(description="Peak memory of KD-FedLLM on language models")
    parser.add_argument("--vocabularies", nargs="+", type=int, default=VOCABULARIES)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    quiet()
    content = {
        "chunk_bytes": 4 * CHUNK,
        "examples": NUM_PUBLIC,
        "tokens": TOKENS,
        "clients": NUM_CLIENTS,
        "batch_size": BATCH,
        "cases": [{"vocabulary": v, "peaks": measure(v)} for v in options.vocabularies],
        "environment": environment("cpu", sys.argv),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    write_atomic(options.out / "kd_memory.json", json.dumps(content, indent=1) + "\n")
    write_atomic(options.out / "kd_memory.md", markdown(content))
    print(markdown(content))


if __name__ == "__main__":
    main()
