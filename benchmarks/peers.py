"""One job in Trillium, in its peers and in a plain loop: seconds, processor time, memory, bytes.

MiniLM with LoRA on Banking77: the same partition, rows, batches, steps, start values and evaluation.
Each contestant is a program of its own, written as its documentation would have it (`peers/`), in an
environment of its own with pinned versions (`peers/requirements-NAME.txt`); Trillium is `trillium run`.
They take turns, whole runs, and each process computes with one thread. All is seen from outside: when
the first optimiser step is done (by a hook that no contestant knows of), when each round is measured,
and the processor time and resident memory (PSS) of all processes that belong to the run.

    python benchmarks/peers.py --install
    OMP_NUM_THREADS=1 python benchmarks/peers.py
    OMP_NUM_THREADS=1 python benchmarks/peers.py --clients 1000 --clients-per-round 20 --rows 9000
    OMP_NUM_THREADS=1 python benchmarks/peers.py --job split --out benchmarks/results/peers_split.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch
import yaml
from rich.console import Console
from rich.table import Table

from prepare import DATA, choose_rows
from speed import Found, program
from trillium.config.experiment import experiment
from trillium.data.load import load_data
from trillium.experiment.run import resident_model

HERE = Path(__file__).parent
PLACES = Path("runs/peers")
PERIOD = 0.1  # seconds between two looks at the processes
LIMIT = 1800.0  # seconds that a contestant may take
CUT = 3  # of MiniLM's six blocks
COLUMNS = {
    "first_step": "s to the first step",
    "round": "s a round",
    "round_cpu": "CPU s a round",
    "run": "s in all",
    "run_cpu": "CPU s in all",
    "memory": "peak MB",
    "accuracy": "accuracy",
}


@dataclass(frozen=True)
class Contestant:
    """A program that does the job.

    Attributes:
        environment: whose Python it runs with; none is this one.
        words: what follows the Python; `{recipe}` and `{out}` are filled in.
    """

    words: Sequence[str]
    environment: str | None = None

    def command(self, recipe: Path, out: Path) -> list[str]:
        """Return the command line."""
        python = python_of(self.environment) if self.environment else sys.executable
        return [str(python), *(word.format(recipe=recipe, out=out) for word in self.words)]


TRILLIUM = (
    str(Path(sys.executable).with_name("trillium")),
    "run",
    "{recipe}",
    "--out={out}",
    "--quiet",
)
FEDLLM = {
    "plain": Contestant([str(HERE / "peers/plain.py")]),
    "trillium": Contestant(TRILLIUM),
    "trillium, 2 workers": Contestant([*TRILLIUM, "--engine=ray", "--workers=2"]),
    "flower, 1 worker": Contestant([str(HERE / "peers/flower_job.py"), "1"], "flower"),
    "flower, 2 workers": Contestant([str(HERE / "peers/flower_job.py"), "2"], "flower"),
    "nvflare, 2 threads": Contestant([str(HERE / "peers/nvflare_job.py"), "2"], "nvflare"),
    "pfl": Contestant([str(HERE / "peers/pfl_job.py")], "pfl"),
}
SPLIT = {
    "over a pipe": Contestant([str(HERE / "peers/split_pipes.py")]),
    "trillium": FEDLLM["trillium"],
}
JOBS: dict[str, tuple[Mapping[str, Contestant], Any]] = {
    "fedllm": (FEDLLM, "fedllm"),
    "split": (SPLIT, {"name": "split", "cut": CUT, "mode": "coalesced"}),
}


def python_of(environment: str) -> Path:
    """Return the Python of a peer's environment."""
    return (PLACES / "environments" / environment / "bin" / "python").absolute()


def install() -> None:
    """Make the peers' environments; what cannot be installed says so and is left out of the race."""
    for name in {c.environment for c in FEDLLM.values() if c.environment}:
        python = python_of(name)
        subprocess.run([sys.executable, "-m", "venv", python.parents[1]], check=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        done = subprocess.run([*pip, "-r", HERE / f"peers/requirements-{name}.txt"])
        print(f"{name}: {'installed' if done.returncode == 0 else 'could not be installed'}")


def prepare(chosen: argparse.Namespace, folder: Path) -> Path:
    """Write rows, partition and start values for all, and Trillium's recipe; return the recipe."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, num_rows in (("train", chosen.rows), ("test", chosen.test_rows)):
        choose_rows(DATA / "banking77" / f"{part}.csv", -(-num_rows // 77), folder / f"{part}.csv")
    source = {part: str((folder / f"{part}.csv").absolute()) for part in ("train", "test")}
    tree: dict[str, Any] = {
        "rounds": chosen.rounds,
        "framework": JOBS[chosen.job][1],
        "model": {"id": "minilm"},
        "data": {
            "source": {"name": "files", **source, "text": "text", "label": "category"},
            "partition": chosen.partition,
            "num_clients": chosen.clients,
        },
        "adapter": {"name": "lora", "r": 8, "alpha": 16, "target_modules": ["query", "value"]},
        "training": {
            "batch_size": 32,
            "local_epochs": 1,
            "max_length": 64,
            "max_grad_norm": 1.0,
            "optimizer": {"name": "adamw", "lr": 1e-3},
        },
        "fleet": {"clients_per_round": chosen.clients_per_round or chosen.clients},
    }
    config = experiment(tree)
    data = load_data(config.data, config.task.data_form, config.seed)
    for name, rows in [*data.clients.items(), ("test", data.test)]:
        lines = zip(rows["text"], rows["label"], strict=True)
        written = [json.dumps({"text": text, "label": label}) + "\n" for text, label in lines]
        (folder / f"{name}.jsonl").write_text("".join(written), encoding="utf-8")
    model = resident_model(config, data.labels)
    torch.save(model.initial, folder / "start.pt")
    job = {
        "model": model.module.get_base_model().config.name_or_path,  # type: ignore[operator]
        "num_labels": len(data.labels),
        "num_clients": chosen.clients,
        "clients_per_round": chosen.clients_per_round or chosen.clients,
        "rounds": chosen.rounds,
        "cut": CUT,
        "pad": model.tokenizer.pad_token_id,
    }
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    return recipe


@dataclass
class Watch:
    """All processes of a run, wherever they hang: their environment names the run.

    Attributes:
        looks: times with the processor seconds until then.
        peak: most bytes that were resident, shared pages divided among those who share them.
    """

    mark: str
    looks: list[tuple[float, float]] = field(default_factory=list)
    peak: int = 0
    _seen: dict[int, bool] = field(default_factory=dict)
    _cpu: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._seen = dict.fromkeys(psutil.pids(), False)  # older ones are somebody else's

    def ours(self) -> Iterator[psutil.Process]:
        """Yield the processes of the run that live."""
        for pid in psutil.pids():
            try:
                process = psutil.Process(pid)
                if not self._seen.get(pid):
                    self._seen[pid] = self.mark in process.environ().get("PEERS_EVENTS", "")
                if self._seen[pid]:
                    yield process
            except psutil.Error:
                continue

    def look(self) -> bool:
        """Add up what they use, and return whether there are any."""
        memory, some = 0, False
        for process in self.ours():
            try:
                times = process.cpu_times()
                self._cpu[process.pid] = times.user + times.system
                memory += process.memory_full_info().pss
                some = True
            except psutil.Error:
                continue
        self.peak = max(self.peak, memory)
        self.looks.append((time.time(), sum(self._cpu.values())))
        return some

    def cpu(self, when: float) -> float:
        """Return the processor seconds until a time."""
        for (before, low), (after, high) in pairwise(self.looks):
            if before <= when <= after:
                return low + (high - low) * (when - before) / max(after - before, 1e-9)
        return self.looks[-1][1]


def race(contestant: Contestant, folder: Path, recipe: Path) -> Found:
    """Run one contestant once, and return what was seen of it, or why it failed."""
    with tempfile.TemporaryDirectory() as place:
        events, out, log = Path(place, "events"), Path(place, "out"), Path(place, "log")
        events.touch()
        environ = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str((HERE / "peers").absolute()),
            "PEERS_EVENTS": str(events),
            "PEERS_JOB": str(folder.absolute()),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        watch, found = Watch(str(events)), Found()
        rounds: list[tuple[float, float]] = []  # times and accuracies
        with log.open("w") as told:
            start = time.time()
            command = contestant.command(recipe.absolute(), out)
            process = subprocess.Popen(command, stdout=told, stderr=told, env=environ)
            while process.poll() is None and time.time() - start < LIMIT:
                watch.look()
                lines = [line for path in out.glob("*/metrics.jsonl") for line in path.open()]
                for line in lines[len(rounds) :]:
                    rounds.append((time.time(), json.loads(line)["accuracy"]))
                time.sleep(PERIOD)
            end = time.time()
            process.kill()
        for other in watch.ours():
            other.kill()
        for line in map(json.loads, events.read_text(encoding="utf-8").splitlines()):
            if line["event"] == "first_step" and "first_step" not in found:
                found["first_step"] = line["time"] - start
            if line["event"] == "round":
                rounds.append((line["time"], line["accuracy"]))
            if line["event"] == "bytes":
                found["bytes_up"] = line["up"]
        times = [when for when, _ in rounds][1:]
        if process.returncode or len(times) < 2:
            return {"error": log.read_text(encoding="utf-8", errors="replace")[-2000:]}
        found["round"] = statistics.median(b - a for a, b in pairwise(times))
        found["round_cpu"] = statistics.median(
            watch.cpu(b) - watch.cpu(a) for a, b in pairwise(times)
        )
        found |= {"run": end - start, "run_cpu": watch.looks[-1][1], "memory": watch.peak / 1e6}
        return {**found, "accuracy": rounds[-1][1]}


def options(parser: argparse.ArgumentParser) -> None:
    """Add what can be chosen."""
    add = parser.add_argument
    add("--install", action="store_true", help="make the peers' environments, and end")
    add("--job", choices=JOBS, default="fedllm")
    add("--only", nargs="+", choices=[*FEDLLM, *SPLIT], help="some contestants; all by default")
    add("--clients", type=int, default=10)
    add("--clients-per-round", type=int, help="all, if not given")
    add("--rows", type=int, default=1000)
    add("--test-rows", type=int, default=150)
    add("--rounds", type=int, default=4)
    add("--partition", default="iid")
    add("--repetitions", type=int, default=3)


def run(chosen: argparse.Namespace) -> tuple[list[Found], Found]:
    """Let them take turns, and return medians."""
    if chosen.install:
        install()
        raise SystemExit
    folder = PLACES / f"{chosen.job}_{chosen.clients}_clients_{chosen.rows}_rows"
    recipe = prepare(chosen, folder)
    contestants = JOBS[chosen.job][0]
    names = [name for name in contestants if name in (chosen.only or contestants)]
    seen: dict[str, list[Found]] = {name: [] for name in names}
    for number in range(chosen.repetitions):
        for name in names if number % 2 else reversed(names):
            seen[name].append(race(contestants[name], folder, recipe))
            print(name, seen[name][-1], flush=True)
    found = []
    for name, runs in seen.items():
        whole = [one for one in runs if "error" not in one]
        keys = [key for key in (*COLUMNS, "bytes_up") if any(key in one for one in whole)]
        medians = {key: statistics.median(o[key] for o in whole if key in o) for key in keys}
        errors = [one["error"] for one in runs if "error" in one]
        found.append({"contestant": name, **medians, "runs": whole, "errors": errors})
    show(found)
    told = ("job", "clients", "clients_per_round", "rows", "test_rows", "rounds", "partition")
    return found, {name: getattr(chosen, name) for name in told}


def show(found: Sequence[Found]) -> None:
    """Print the medians."""
    table = Table(title="One job, medians", caption="bytes up are those of one client in a round")
    table.add_column("contestant")
    for title in (*COLUMNS.values(), "kB up"):
        table.add_column(title, justify="right")
    for line in found:
        cells = [f"{line[key]:.3g}" if key in line else "–" for key in COLUMNS]
        up = f"{line['bytes_up'] / 1e3:.1f}" if "bytes_up" in line else "–"
        table.add_row(line["contestant"], *cells, up)
    Console(width=120).print(table)


if __name__ == "__main__":
    program("peers", "One job, in Trillium and its peers", options, run)
