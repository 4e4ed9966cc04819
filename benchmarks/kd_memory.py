"""Peak memory of KD-FedLLM on language models as the vocabulary grows.

A small decoder with random weights goes through what a round of distillation does with soft labels: a
client predicts and encodes, the server translates between vocabularies and makes a teacher of three
opinions, a student distils. Each vocabulary has a process of its own. Two witnesses: the bytes of all
living tensors (`trillium.training.meters`), which no kernel's scratch memory is part of, and what the
operating system saw. What the model itself weighs is reported apart, since embeddings grow with the
vocabulary. `naive` is the same in plain PyTorch, with all logits at once.

    OMP_NUM_THREADS=1 python benchmarks/kd_memory.py
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, PreTrainedTokenizerFast

from kd_memory_report import markdown, plot
from trillium.config.experiment import experiment
from trillium.experiment.folder import environment
from trillium.experiment.run import Experiment, build
from trillium.files import write_atomic
from trillium.frameworks.kd.alignment.labels import translate_labels
from trillium.frameworks.kd.alignment.pieces import Pieces
from trillium.frameworks.kd.alignment.sequence import Alignment
from trillium.frameworks.kd.alignment.vocabulary import Vocabularies
from trillium.frameworks.kd.distillation import Loss, distillation, predict
from trillium.frameworks.kd.opinion import Opinion
from trillium.frameworks.kd.protocol import KD
from trillium.frameworks.kd.teacher import make_teacher, predictions
from trillium.tasks import Example
from trillium.tasks.batches import collate, in_order
from trillium.training.loop import task_objective
from trillium.training.meters import Meter, resident_tensors
from trillium.wire.soft_labels import CHUNK

RESULTS = Path(__file__).resolve().parent / "results"
VOCABULARIES = (1_000, 4_000, 8_000, 16_000, 50_257, 151_936)  # the last two: GPT-2's, Qwen's
SPECIAL = ("[PAD]", "[UNK]", "[BOS]", "[EOS]")
TOKENS = 32  # of a prompt, and of its response
NUM_PUBLIC, NUM_CLIENTS, BATCH = 12, 3, 8
TEMPERATURE = 1.0
CODECS = {
    "top_classes": {"name": "top_classes", "k": 16},
    "sampled_classes": {"name": "sampled_classes", "draws": 16},
}
ADAPTERS = {
    "lora": {"name": "lora", "r": 4, "target_modules": ["q_proj", "v_proj"]},
    "full": {"name": "full"},
}
T = TypeVar("T")


@dataclass(frozen=True)
class Case:
    """What one process measures.

    Attributes:
        vocabulary: tokens of it.
        codec: of the soft labels.
        adapter: what trains.
        tied: whether the last layer has the weights of the embedding.
        naive: whether in plain PyTorch, all logits at once.
    """

    vocabulary: int
    codec: str = "top_classes"
    adapter: str = "lora"
    tied: bool = True
    naive: bool = False


SERIES: tuple[dict[str, Any], ...] = (
    {},
    {"tied": False},
    {"codec": "sampled_classes"},
    {"adapter": "full"},
    {"naive": True},
)


@dataclass(frozen=True)
class Peak:
    """The peak of one stage.

    Attributes:
        peak_bytes: of all tensors that lived at once.
        own_bytes: of these, the model's: weights, and gradients and optimiser of what trains.
        resident_bytes: by how much the process grew at most; `None` where the system does not say.
        seconds: how long it took.
    """

    peak_bytes: int
    own_bytes: int
    resident_bytes: int | None
    seconds: float


def federation(case: Case, folder: Path) -> Experiment:
    """Build the federation of a case, its model and data drawn at random."""
    words = {word: index for index, word in enumerate(SPECIAL)}
    words |= {f"w{index}": index for index in range(len(SPECIAL), case.vocabulary)}
    raw = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = dict(zip(("pad_token", "unk_token", "bos_token", "eos_token"), SPECIAL, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=raw, **names).save_pretrained(folder)
    sizes = {"hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
    AutoConfig.for_model(
        "llama", vocab_size=case.vocabulary, tie_word_embeddings=case.tied, **sizes
    ).save_pretrained(folder)
    draw = torch.Generator().manual_seed(0)
    rows = []
    for _ in range(NUM_PUBLIC + NUM_CLIENTS * BATCH + BATCH):
        drawn = torch.randint(len(SPECIAL), case.vocabulary, (2, TOKENS), generator=draw)
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
                "adapter": ADAPTERS[case.adapter],
                "training": {"batch_size": BATCH, "max_length": 2 * TOKENS + 2},
                "wire": {"up": [CODECS[case.codec]], "down": [CODECS[case.codec]]},
            }
        )
    )


class Stages:
    """Measures one stage after the other.

    Attributes:
        found: peaks by name of the stage.
    """

    def __init__(self, module: nn.Module) -> None:
        self.found: dict[str, Peak] = {}
        self._module = module

    def measure(self, name: str, work: Callable[[], T], trains: bool = False) -> T:
        """Do the work of a stage and return what it gives."""
        own = sum(t.nbytes for t in resident_tensors(self._module))
        if trains:  # a gradient and Adam's two moments
            own += 3 * sum(p.nbytes for p in self._module.parameters() if p.requires_grad)
        meter, before = Meter({}), start_of_peak()
        with meter.measure(name, lambda: resident_tensors(self._module)):
            result = work()
        grown = None if before is None else status("VmHWM") - before
        cost = meter.read()
        self.found[name] = Peak(cost.peak_bytes, own, grown, cost.seconds)
        return result


def start_of_peak() -> int | None:
    """Let the system forget the peak of this process; return what it holds now, in bytes."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:  # not Linux, or not allowed
        return None
    return status("VmRSS")


def status(key: str) -> int:
    """Return a figure of this process from `/proc/self/status`, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def measure(case: Case) -> dict[str, Peak]:
    """Return the peak of each stage of one case."""
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        fed = federation(case, Path(folder))
    stages = Stages(fed.model.module)
    (naive if case.naive else in_parts)(fed, stages)
    return stages.found


def in_parts(fed: Experiment, stages: Stages) -> None:
    """Go through a round as Trillium does."""
    server, client, framework = fed.server, fed.clients[0], fed.config.framework
    assert isinstance(framework, KD)
    task, public = server.task, server.public
    num_rows, num_classes = shape = predictions(server, public)
    loop = client.loop("predict", client.model.state())
    writer = client.wire.writer("teach", "logits/public", 1, shape, "up")
    labels = stages.measure("predict", lambda: predict(loop, task, public, writer))
    labels.check()

    other = permuted(num_classes)
    other.map()  # what it weighs is of the vocabulary, not of the labels
    rows = Alignment(torch.arange(num_rows), torch.zeros(num_rows, dtype=torch.int8))
    writer = fed.fleet.wire.writer("teach", "logits/public", 1, shape, "up")
    stages.measure("translate", lambda: translate_labels(labels, rows, other, writer))

    opinions = [Opinion(1.0, 0.0, labels) for _ in fed.clients]
    writer = fed.fleet.wire.writer("learn", "logits/teacher", 1, shape, "down")
    _, teacher = stages.measure(
        "teacher", lambda: make_teacher(framework, server, opinions, public, writer)
    )

    state, training = client.model.state(), client.training
    chunks = list(in_order(public, BATCH))
    loop, objective = distillation(
        client.loop("distil", state), task, public, teacher, Loss(TEMPERATURE)
    )

    def fit() -> object:
        return loop.fit(chunks, objective, training, client.progress, len(chunks))

    stages.measure("distil", fit, trains=True)

    # No part of distillation: the client's own step, and a look at held-out rows.
    loop, own = client.loop("train", state), task_objective(task, client.examples)
    batch = client.examples[:BATCH]
    stages.measure(
        "own step", lambda: loop.fit([batch], own, training, client.progress, 1), trains=True
    )
    stages.measure("evaluate", lambda: client.evaluate(state, BATCH))


def permuted(size: int) -> Vocabularies:
    """Return two vocabularies of the same words, in opposite order."""
    words = tuple(f" w{index}" for index in range(size))
    return Vocabularies(Pieces(words, words), Pieces(words[::-1], words[::-1]), size, size)


def naive(fed: Experiment, stages: Stages) -> None:
    """Do the same with PyTorch alone: every logit of every prediction is there at once."""
    client, task, public = fed.clients[0], fed.server.task, fed.server.public
    loop = client.loop("predict", client.model.state())

    def rows(examples: list[Example]) -> Tensor:
        batch = collate(examples, loop.pad_id, loop.device)
        found, _ = task.select(loop.module(**batch.inputs).logits, batch.labels)
        return found

    @torch.no_grad()
    def predicted() -> Tensor:
        return rows(public).log_softmax(-1)

    @torch.no_grad()
    def mean() -> Tensor:
        opinions = torch.stack([labels for _ in fed.clients])
        return (opinions / TEMPERATURE).softmax(-1).mean(0).log()

    labels = stages.measure("predict", predicted)
    teacher = stages.measure("teacher", mean)
    optimizer = torch.optim.AdamW(p for p in loop.module.parameters() if p.requires_grad)

    def fit() -> None:
        start = 0
        for chunk in in_order(public, BATCH):
            student = (rows(chunk) / TEMPERATURE).log_softmax(-1)
            part = teacher[start : start + len(student)]
            loss = functional.kl_div(student, part, reduction="batchmean", log_target=True)
            (loss * TEMPERATURE**2).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            start += len(student)

    stages.measure("distil", fit, trains=True)


def in_process(case: Case) -> dict[str, Any]:
    """Measure a case in a process of its own."""
    # Else the C library keeps some of what was freed, and the system sees less than there is.
    variables = {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, __file__, "--case", json.dumps(asdict(case))],
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return {**asdict(case), "stages": json.loads(done.stdout.splitlines()[-1])}


def least_naive(vocabulary: int) -> int:
    """Return bytes that the naive way needs at least: opinions of all clients, and their mean."""
    return 4 * (NUM_CLIENTS + 1) * NUM_PUBLIC * TOKENS * vocabulary


def collect(vocabularies: Iterable[int], bound: int) -> list[dict[str, Any]]:
    """Measure all cases, each in a process of its own."""
    found = []
    for options in SERIES:
        for size in vocabularies:
            case, start = Case(size, **options), time.perf_counter()
            if case.naive and least_naive(size) > bound:
                found.append({**asdict(case), "stages": {}, "at_least_bytes": least_naive(size)})
                continue
            found.append(in_process(case))
            print(f"{case}: {time.perf_counter() - start:.0f} s", flush=True)
    return found


def main() -> None:
    """Measure, print the table and write the results."""
    parser = argparse.ArgumentParser(description="Peak memory of KD-FedLLM on language models")
    parser.add_argument("--vocabularies", nargs="+", type=int, default=VOCABULARIES)
    parser.add_argument("--bound", type=float, default=4.0, help="GB, for the naive way")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        found = measure(Case(**json.loads(options.case)))
        print(json.dumps({name: asdict(peak) for name, peak in found.items()}))
        return
    content = {
        "chunk_bytes": 4 * CHUNK,
        "examples": NUM_PUBLIC,
        "tokens": TOKENS,
        "clients": NUM_CLIENTS,
        "batch_size": BATCH,
        "cases": collect(options.vocabularies, int(options.bound * 1e9)),
        "environment": environment("cpu", sys.argv),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    write_atomic(options.out / "kd_memory.json", json.dumps(content, indent=1) + "\n")
    write_atomic(options.out / "kd_memory.md", markdown(content))
    (options.out / "kd_memory.png").write_bytes(plot(content))
    print(markdown(content))


if __name__ == "__main__":
    main()
