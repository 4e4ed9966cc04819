"""Tokens per second of Split-FedLLM in the local engine, beside a plain loop over the unsplit model.

The plain loop is PyTorch, Transformers and PEFT alone, over the same pooled batches: no cut, no
messages, no meters. Both sides begin with the same weights, and after every epoch their weights must
be the same, or the script fails. They take turns, and which one begins alternates. Cases:

* `one_client`: both sides of the cut train, AdamW, clipped across the cut;
* `four_clients`: both sides train on the batches of four clients as one. Central training is what
  that is if the parts of the clients are averaged after every step, of SGD; so a round has one step,
  and the parts cross with each;
* `cache_once`: the client's block is frozen; the server's epochs on what four clients have sent once.
  The unsplit loop has no cache and runs the frozen block in every epoch;
* `cache_once_int4`: the same with activations in 4 bits. The weights are others then, and not compared.

    OMP_NUM_THREADS=1 python benchmarks/split_throughput.py
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from overhead import LR, MAX_NORM, Timed, largest_difference, plain_model, timed, trillium_round
from speed import Found, compared, in_turn, program, show
from trillium.config.experiment import ExperimentConfig, experiment
from trillium.experiment.run import Experiment, build
from trillium.frameworks.split.protocol import Split
from trillium.models.slots import values
from trillium.rng import generator
from trillium.tasks import Example
from trillium.training.loop import batches

GOAL = 0.9
CLOCKS = ("wall", "cpu")
TOLERANCE = 1e-4  # largest difference of a weight; AdamW lets roundings grow from step to step
BATCH = 32  # examples of a pooled batch
ADAMW = {"name": "adamw", "lr": LR}
SGD = {"name": "sgd", "lr": 0.1}


@dataclass(frozen=True)
class Case:
    """What is compared.

    Attributes:
        name: as the results call it.
        num_clients: among whom the examples are divided evenly.
        framework: settings beside `cut` 1.
        training: settings beside the batch size.
        wire: codecs.
        same: whether the weights must be those of the unsplit loop.
    """

    name: str
    num_clients: int
    framework: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    wire: dict[str, Any] = field(default_factory=dict)
    same: bool = True

    @property
    def in_single_steps(self) -> bool:
        """Whether a round is one step."""
        return "local_steps" in self.training

    @property
    def cached(self) -> bool:
        """Whether activations are sent once."""
        return self.framework.get("train") == "server"

    def configuration(self, model: str, num_examples: int, num_rounds: int) -> ExperimentConfig:
        """Return the experiment that both sides run; evaluation plays no part.

        Args:
            model: its id.
            num_rounds: at most.
        """
        own = BATCH if self.cached else BATCH // self.num_clients
        source = {"name": "builtin", "num_train": num_examples, "num_test": 38}
        return experiment(
            {
                "rounds": num_rounds,
                "framework": {"name": "split", "cut": 1, **self.framework},
                "model": {"id": model, "dropout": 0.0},
                "data": {"source": source, "num_clients": self.num_clients},
                "training": {"batch_size": own, "max_grad_norm": MAX_NORM, **self.training},
                "wire": self.wire,
            }
        )


CASES = (
    Case("one_client", 1, training={"optimizer": ADAMW}),
    Case(
        "four_clients",
        4,
        training={"optimizer": SGD, "max_grad_norm": None, "local_steps": 1},
    ),
    Case("cache_once", 4, {"train": "server"}, {"optimizer": ADAMW}),
    Case(
        "cache_once_int4",
        4,
        {"train": "server"},
        {"optimizer": ADAMW},
        {"up": [{"name": "int4", "kinds": ["activations"]}]},
        same=False,
    ),
)


class Unsplit:
    """The plain loop.

    Args:
        trillium: has the weights to begin with, and the settings.
    """

    def __init__(self, trillium: Experiment) -> None:
        self.training, self.pad_id = (
            trillium.config.training,
            trillium.model.tokenizer.pad_token_id,
        )
        self.model = plain_model(trillium).train()
        for module in self.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        split = trillium.config.framework
        assert isinstance(split, Split)
        parts = split.parts(trillium.model, trillium.server.test)
        frozen = () if split.head_trains(parts, self.training) else parts.head.names
        trains = trillium.server.state.keys() - {*frozen}
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in trains)
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        kind = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[self.training.optimizer.name]
        self.optimizer = kind(self.trained, lr=self.training.optimizer.lr, weight_decay=0.0)

    def run(self, chunks: Sequence[list[Example]]) -> None:
        """Train on batches, as anybody would write it."""
        device = next(self.model.parameters()).device
        for chunk in chunks:
            ids = nn.utils.rnn.pad_sequence(
                [e.input_ids for e in chunk], batch_first=True, padding_value=self.pad_id
            )
            ids = nn.functional.pad(ids, (0, -ids.shape[1] % 8), value=self.pad_id)
            lengths = torch.tensor([len(e.input_ids) for e in chunk])
            mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
            labels = torch.stack([e.labels for e in chunk])
            loss = self.model(
                input_ids=ids.to(device), attention_mask=mask.to(device), labels=labels.to(device)
            ).loss
            loss.backward()
            if self.training.max_grad_norm is not None:
                nn.utils.clip_grad_norm_(self.trained, self.training.max_grad_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()

    def weights(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Return the values of parameters."""
        found = dict(self.model.named_parameters())
        return {name: found[name].detach() for name in names}


def pooled_batches(trillium: Experiment, case: Case, number: int) -> Iterator[list[Example]]:
    """Yield the batches that Trillium is going to train on in a round, those of all clients as one."""
    seed, training = trillium.config.seed, trillium.config.training
    clients = sorted(trillium.clients, key=lambda client: client.name)
    if case.cached:
        pool = [example for client in clients for example in client.examples]
        yield from batches(pool, training, generator(seed, "batches", "server", number))
        return
    own = [
        batches(client.examples, training, generator(seed, "batches", client.name, number))
        for client in clients
    ]
    for chunks in zip(*own, strict=True):
        yield [example for chunk in chunks for example in chunk]


def run_rounds(trillium: Experiment, numbers: Iterable[int]) -> None:
    """Run rounds as `Experiment.run` does, without evaluations."""
    for number in numbers:
        trillium_round(trillium, number)


def measure(case: Case, model: str, num_examples: int, repetitions: int) -> Found:
    """Run both sides by turns, a warm-up epoch first, and return what was measured."""
    per_epoch = num_examples // BATCH if case.in_single_steps else 1
    trillium = build(case.configuration(model, num_examples, per_epoch * (repetitions + 1)))
    trillium.config.framework.start(trillium.server, trillium.fleet)
    unsplit, device = Unsplit(trillium), trillium.model.device
    times: dict[str, list[Timed]] = {"unsplit": [], "split": []}
    num_tokens, differences = [], [0.0]
    for epoch in range(repetitions + 1):
        numbers = range(epoch * per_epoch + 1, (epoch + 1) * per_epoch + 1)
        chunks = [chunk for n in numbers for chunk in pooled_batches(trillium, case, n)]
        num_tokens.append(sum(e.num_tokens for chunk in chunks for e in chunk))
        works: dict[str, Callable[[], None]] = {
            "split": lambda at=numbers: run_rounds(trillium, at),  # type: ignore[misc]
            "unsplit": lambda at=chunks: unsplit.run(at),  # type: ignore[misc]
        }
        for side in in_turn([*times], epoch):
            times[side].append(timed(works[side], device))
        if case.same:
            ours = values(trillium.server.state)
            differences.append(largest_difference(ours, unsplit.weights(list(ours))))
            check_same(case, differences[-1], epoch)

    def speeds(clock: str) -> dict[str, list[float]]:
        return {
            side: [n / getattr(t, clock) for n, t in zip(num_tokens[1:], found[1:], strict=True)]
            for side, found in times.items()
        }

    return {
        "case": case.name,
        "num_clients": case.num_clients,
        "num_examples": num_examples,
        "tokens_per_epoch": num_tokens[0],
        "largest_weight_difference": max(differences) if case.same else None,
        **{clock: compared(speeds(clock)) for clock in CLOCKS},
    }


def check_same(case: Case, difference: float, epoch: int) -> None:
    """Stop if the two sides did not do the same work."""
    if not difference <= TOLERANCE:
        raise SystemExit(
            f"{case.name}, epoch {epoch + 1}: the weights differ by {difference:.2e}, more than "
            f"{TOLERANCE}: this is not the same work"
        )


def options(parser: argparse.ArgumentParser) -> None:
    """Add what can be chosen."""
    names = [case.name for case in CASES]
    parser.add_argument("--cases", nargs="+", choices=names, default=names)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--examples", type=int, default=256, help="of all clients")
    parser.add_argument("--repetitions", type=int, default=5)


def run(chosen: argparse.Namespace) -> tuple[list[Found], Found]:
    """Measure each case."""
    found = [
        measure(case, chosen.model, chosen.examples, chosen.repetitions)
        for case in CASES
        if case.name in chosen.cases
    ]
    lines = [(f"{line['case']}, {clock}", line[clock]) for line in found for clock in CLOCKS]
    show("Split-FedLLM beside the unsplit loop", lines, GOAL)
    return found, {"goal": GOAL, "model": chosen.model, "batch_size": BATCH}


if __name__ == "__main__":
    program("split_throughput", "Split-FedLLM beside the unsplit loop", options, run)
