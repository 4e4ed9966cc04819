"""What Trillium costs beside a plain PyTorch + PEFT loop that does the same work.

Both sides run federated averaging of LoRA adapters over ten clients, from the same weights, on the
same batches in the same order. `plain_round` is written with PyTorch, Transformers and PEFT alone: no
messages, no codecs, no meters, no ledger. Trillium's time includes all of these. Both start each round
from the same weights and must end it with the same, or the comparison would not be of the same work.

    OMP_NUM_THREADS=1 python benchmarks/overhead.py
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForSequenceClassification

from trillium.config.experiment import ExperimentConfig, experiment
from trillium.experiment.environment import environment
from trillium.experiment.run import Experiment, build
from trillium.files import write_atomic
from trillium.models.slots import values
from trillium.rng import derive_seed, generator
from trillium.tasks import Example
from trillium.training.loop import batches

RESULTS = Path(__file__).parent / "results"
TOLERANCE = 1e-5  # largest difference of a weight after a round
RANK, ALPHA, LR, MAX_NORM = 8, 16, 1e-3, 1.0
State = dict[str, Tensor]
Rounds = dict[str, list[list[Example]]]  # the batches of one round, by client


def configuration(num_clients: int, num_examples: int, num_rounds: int) -> ExperimentConfig:
    """Return the experiment that both sides run; evaluation plays no part."""
    return experiment(
        {
            "rounds": num_rounds,
            "framework": "fedllm",
            "model": {"id": "minilm"},
            "data": {
                "source": {
                    "name": "builtin",
                    "num_train": num_clients * num_examples,
                    "num_test": 38,
                },
                "num_clients": num_clients,
            },
            "adapter": {"name": "lora", "r": RANK, "alpha": ALPHA},
            "training": {
                "batch_size": 16,
                "local_epochs": 1,
                "optimizer": {"name": "adamw", "lr": LR},
                "max_grad_norm": MAX_NORM,
            },
        }
    )


def plain_model(trillium: Experiment) -> nn.Module:
    """Return the Hugging Face model with LoRA, set to the weights that Trillium starts from."""
    base = trillium.model.module.get_base_model()  # type: ignore[operator]
    model = AutoModelForSequenceClassification.from_pretrained(
        base.config.name_or_path,
        num_labels=base.config.num_labels,
        attn_implementation="sdpa",
        dtype=base.dtype,
    )
    wrapped = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=RANK, lora_alpha=ALPHA))
    missing = wrapped.load_state_dict(trillium.model.initial, strict=False)
    assert not missing.unexpected_keys, missing.unexpected_keys
    module: nn.Module = wrapped.to(trillium.model.device)
    return module


def planned_batches(trillium: Experiment, number: int) -> Rounds:
    """Return the batches that Trillium's clients are going to draw in a round."""
    config = trillium.config
    return {
        client.name: list(
            batches(
                client.examples,
                config.training,
                generator(config.seed, "batches", client.name, number),
            )
        )
        for client in trillium.clients
    }


def plain_round(
    model: nn.Module, start: State, rounds: Rounds, seeds: dict[str, int], pad_id: int
) -> State:
    """Return the weights after one round of federated averaging, written as anybody would."""
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    device = next(model.parameters()).device
    total = sum(len(batch) for client in rounds.values() for batch in client)
    mean = {name: torch.zeros_like(tensor) for name, tensor in start.items()}
    model.train()
    for client, chunks in rounds.items():
        torch.manual_seed(seeds[client])  # of dropout
        with torch.no_grad():
            for name, parameter in trainable.items():
                parameter.copy_(start[name])
        optimizer = torch.optim.AdamW(trainable.values(), lr=LR, weight_decay=0.0)
        for chunk in chunks:
            ids = pad_sequence([e.input_ids for e in chunk], batch_first=True, padding_value=pad_id)
            ids = nn.functional.pad(ids, (0, -ids.shape[1] % 8), value=pad_id)
            lengths = torch.tensor([len(e.input_ids) for e in chunk])
            mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
            labels = torch.stack([e.labels for e in chunk])
            loss = model(
                input_ids=ids.to(device), attention_mask=mask.to(device), labels=labels.to(device)
            ).loss
            loss.backward()
            nn.utils.clip_grad_norm_(trainable.values(), MAX_NORM)
            optimizer.step()
            optimizer.zero_grad()
        weight = sum(map(len, chunks)) / total
        for name, parameter in trainable.items():
            mean[name] += weight * parameter.detach()
    return mean


def trillium_round(trillium: Experiment, number: int) -> None:
    """Run one round as `Experiment.run` does, without the evaluation."""
    trillium.server.round = number
    trillium.fleet.begin_round(number)
    trillium.config.framework.round(trillium.server, trillium.fleet)


@dataclass(frozen=True)
class Timed:
    """Seconds of one round, by the clock on the wall and by the processor."""

    wall: float
    cpu: float


def timed(work: Callable[[], object], device: torch.device) -> Timed:
    """Run something and take its time."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return Timed(time.perf_counter() - wall, time.process_time() - cpu)


def measure(num_clients: int, num_examples: int, repetitions: int) -> dict[str, Any]:
    """Run both sides by turns, a warm-up round first, and return what was measured."""
    trillium = build(configuration(num_clients, num_examples, repetitions + 1))
    trillium.config.framework.start(trillium.server, trillium.fleet)
    device, pad_id = trillium.model.device, trillium.model.tokenizer.pad_token_id
    model, state = plain_model(trillium), values(trillium.server.state)
    times: dict[str, list[Timed]] = {"trillium": [], "plain": []}
    differences = []

    def run_plain() -> None:
        nonlocal state
        state = plain_round(model, state, rounds, seeds, pad_id)

    for number in range(1, repetitions + 2):
        state = values(trillium.server.state)
        rounds = planned_batches(trillium, number)
        # The dropout of a client's first ask in a round.
        seeds = {name: derive_seed(trillium.config.seed, name, number, 0) for name in rounds}
        sides: list[tuple[str, Callable[[], None]]] = [
            ("trillium", lambda at=number: trillium_round(trillium, at)),  # type: ignore[misc]
            ("plain", run_plain),
        ]
        for name, work in sides if number % 2 else reversed(sides):  # a drift hits both alike
            times[name].append(timed(work, device))
        differences.append(largest_difference(state, values(trillium.server.state)))
        if not differences[-1] <= TOLERANCE:
            raise SystemExit(
                f"round {number}: the weights differ by {differences[-1]:.2e}, "
                f"more than {TOLERANCE}: this is not the same work"
            )

    return {
        "num_clients": num_clients,
        "num_examples_per_client": num_examples,
        "batch_size": trillium.config.training.batch_size,
        "device": str(device),
        "num_threads": torch.get_num_threads(),
        "repetitions": repetitions,
        "largest_weight_difference": max(differences),
        "first_round": {
            "seconds": {name: found[0].wall for name, found in times.items()},
            "ratio": times["trillium"][0].wall / times["plain"][0].wall,
        },
        "wall": _compared([(a.wall, b.wall) for a, b in _pairs(times)]),
        "cpu": _compared([(a.cpu, b.cpu) for a, b in _pairs(times)]),
    }


def largest_difference(a: State, b: State) -> float:
    """Return the largest difference of any weight."""
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def _pairs(times: dict[str, list[Timed]]) -> list[tuple[Timed, Timed]]:
    """Return the rounds after the warm-up, Trillium's beside the plain one's."""
    return list(zip(times["trillium"][1:], times["plain"][1:], strict=True))


def _compared(pairs: list[tuple[float, float]]) -> dict[str, Any]:
    """Return medians, and the ratio within each pair: neighbours in time see the same machine."""
    ratios = [ours / plain for ours, plain in pairs]
    return {
        "trillium_seconds": statistics.median(ours for ours, _ in pairs),
        "plain_seconds": statistics.median(plain for _, plain in pairs),
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        # Other programs can only add time, so the fastest round of each is the least disturbed one.
        "ratio_of_fastest": min(ours for ours, _ in pairs) / min(plain for _, plain in pairs),
        "rounds": [{"trillium": ours, "plain": plain} for ours, plain in pairs],
    }


def show(found: dict[str, Any]) -> None:
    """Print the table."""
    table = Table(
        title=f"One round of FedLLM, {found['num_clients']} clients, "
        f"{found['num_examples_per_client']} examples each, {found['num_threads']} thread(s)",
        caption=f"medians of {found['repetitions']} rounds; weights differ by at most "
        f"{found['largest_weight_difference']:.1e}; the first round, in which costs are counted: "
        f"{found['first_round']['ratio']:.3f}",
    )
    titles = ("Clock", "Plain PyTorch + PEFT", "Trillium", "Ratio", "Lowest", "Highest", "Fastest")
    for title in titles:
        table.add_column(title, justify="left" if title == "Clock" else "right")
    for clock in ("wall", "cpu"):
        line = found[clock]
        seconds = [f"{line[f'{side}_seconds']:.2f} s" for side in ("plain", "trillium")]
        keys = ("ratio", "ratio_min", "ratio_max", "ratio_of_fastest")
        ratios = [f"{line[key]:.3f}" for key in keys]
        table.add_row(clock, *seconds, *ratios)
    Console().print(table)


def main() -> None:
    """Measure, print and write `results/overhead.json`."""
    parser = argparse.ArgumentParser(description="Trillium beside a plain PyTorch + PEFT loop")
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--examples", type=int, default=48, help="of each client")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS / "overhead.json")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    found = measure(options.clients, options.examples, options.repetitions)
    show(found)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    content = {**found, "environment": environment(found["device"], sys.argv)}
    write_atomic(options.out, json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
