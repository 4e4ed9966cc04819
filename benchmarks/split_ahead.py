"""What it brings that clients run a batch ahead: Split-FedLLM with `staleness` 1 beside 0.

Server and client are processes of their own, with a pipe between them. The link is made slower by
sleeping as long as the bytes of each message would take, since nothing else is slow between two
processes of one machine; both ways are told apart by nothing else than `framework.staleness`. They
take turns, round by round. With staleness the client's forward pass and the way up of its activations
lie beside the server's work; the way down of the gradients and the client's backward pass do not.

    OMP_NUM_THREADS=1 python benchmarks/split_ahead.py
"""

from __future__ import annotations

import argparse
import queue
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from overhead import trillium_round
from speed import Found, compared, in_turn, program, show
from trillium.config.experiment import ExperimentConfig, experiment
from trillium.experiment.run import Experiment, build
from trillium.federation.engine import Gathered
from trillium.quiet import quiet

BATCH = 32


def configuration(
    model: str, cut: int, num_examples: int, num_rounds: int, staleness: int
) -> ExperimentConfig:
    """Return the experiment of both sides: one client, both sides of the cut train."""
    source = {"name": "builtin", "num_train": num_examples, "num_test": 38}
    return experiment(
        {
            "rounds": num_rounds,
            "framework": {"name": "split", "cut": cut, "staleness": staleness},
            "model": {"id": model, "dropout": 0.0},
            "data": {"source": source, "num_clients": 1},
            "training": {"batch_size": BATCH},
        }
    )


def serve(pipe: Connection, tree: Mapping[str, Any], bits_per_second: float | None) -> None:
    """Be the clients until None is asked; each message takes its time on the link."""
    quiet()
    clients = {client.name: client for client in build(experiment(tree)).clients}
    pipe.send("ready")

    def pace(data: bytes) -> bytes:
        if bits_per_second is not None:
            time.sleep(8 * len(data) / bits_per_second)
        return data

    while (asked := pipe.recv()) is not None:
        number, name, data = asked
        pipe.send((number, pace(clients[name].handle(pace(data)))))


class Apart:
    """The engine: clients in another process, which answer in the order in which they are asked."""

    def __init__(self, clients: Sequence[str], pipe: Connection) -> None:
        self.clients, self._pipe = clients, pipe
        self._replies: dict[int, queue.SimpleQueue[bytes]] = {}
        self._count = 0
        threading.Thread(target=self._receive, daemon=True).start()

    def _receive(self) -> None:
        """Take replies as they come: the other side would wait with the next ask until then."""
        while True:
            try:
                number, reply = self._pipe.recv()
            except (EOFError, OSError):
                return
            self._replies[number].put(reply)

    def carry(self, requests: Mapping[str, bytes]) -> Iterator[tuple[str, bytes]]:
        """Ask and wait."""
        yield from self.post(requests)

    def post(self, requests: Mapping[str, bytes]) -> Iterator[tuple[str, bytes]]:
        """Ask now, and return what waits."""
        numbers = {}
        for name, data in requests.items():
            self._count += 1
            numbers[name] = self._count
            self._replies[self._count] = queue.SimpleQueue()
            self._pipe.send((self._count, name, data))
        return self._waited(numbers)

    def _waited(self, numbers: Mapping[str, int]) -> Iterator[tuple[str, bytes]]:
        for name, number in numbers.items():
            yield name, self._replies[number].get()
            del self._replies[number]

    def gather(self, need: int) -> Gathered:
        """Return everybody."""
        return Gathered({*self.clients})

    def save(self, number: int) -> None:
        """Keep nothing."""

    def restore(self, number: int, held: Mapping[str, int]) -> None:
        """Go back to nothing."""


@contextmanager
def apart(config: ExperimentConfig, bits_per_second: float | None) -> Iterator[Experiment]:
    """Build an experiment whose clients are in another process while the block runs."""
    ours, theirs = get_context("spawn").Pipe()
    process = get_context("spawn").Process(
        target=serve, args=(theirs, config.tree(), bits_per_second), daemon=True
    )
    process.start()
    theirs.close()
    built = build(config)
    if ours.recv() != "ready":
        raise SystemExit("the clients' process does not come up")
    built.fleet.engine = Apart(built.fleet.engine.clients, ours)
    built.config.framework.start(built.server, built.fleet)
    try:
        yield built
    finally:
        with suppress(OSError):  # it has failed, and what it said of it is on the screen
            ours.send(None)
        process.join()


def measure(chosen: argparse.Namespace, megabits: float) -> Found:
    """Run both by turns, a warm-up round first, and return what was measured."""
    bits = megabits * 1e6 if megabits else None
    num_rounds = chosen.repetitions + 1
    configs = [
        configuration(chosen.model, chosen.cut, chosen.examples, num_rounds, staleness)
        for staleness in (0, 1)
    ]
    speeds: dict[str, list[float]] = {"staleness_0": [], "staleness_1": []}
    with apart(configs[0], bits) as plain, apart(configs[1], bits) as ahead:
        num_tokens = sum(e.num_tokens for client in plain.clients for e in client.examples)
        for number in range(1, num_rounds + 1):
            for side in in_turn([*speeds], number):
                start = time.perf_counter()
                trillium_round(plain if side == "staleness_0" else ahead, number)
                speeds[side].append(num_tokens / (time.perf_counter() - start))
    found = compared({side: after[1:] for side, after in speeds.items()})
    return {"megabits_per_second": megabits or None, "tokens_per_round": num_tokens, **found}


def options(parser: argparse.ArgumentParser) -> None:
    """Add what can be chosen."""
    add = parser.add_argument
    add("--model", default="minilm")
    add("--cut", type=int, default=2)
    add("--examples", type=int, default=128, help="of the client")
    add("--megabits", type=float, nargs="+", default=[0.0, 20.0], help="0: no limit")
    add("--repetitions", type=int, default=5)


def run(chosen: argparse.Namespace) -> tuple[list[Found], Found]:
    """Measure with each link."""
    found = [measure(chosen, megabits) for megabits in chosen.megabits]
    links = [line["megabits_per_second"] for line in found]
    labels = [f"{link:g} Mbit/s" if link else "pipe" for link in links]
    show(f"A batch ahead, cut {chosen.cut}", list(zip(labels, found, strict=True)))
    return found, {"model": chosen.model, "cut": chosen.cut, "batch_size": BATCH}


if __name__ == "__main__":
    program("split_ahead", "Split-FedLLM with staleness 1 beside 0", options, run)
