"""A drill: random faults in a deployment over real sessions, and what becomes of each run.

    python benchmarks/chaos.py --faults 200 --seed 1

Each draw takes a framework with state at its clients, strict or lax, and one to three faults: a node's
process is killed in an ask or while it keeps its state, a node hangs, one link or all are cut for a
moment, the link is slow, or garbles what crosses; a node's disk is full; a node's files are lost or
older than they were; the server is killed, and goes on. A run must then

* end as one that nothing happened to: the same weights, bit by bit, and nobody missing (`equal`);
* or stop, and end so when it is started again (`resumed`);
* or say who was missing from which round (`recorded`);
* or stop for good and say why, where a strict run has lost a state that nobody has (`stopped`).

Anything else is a fault of Trillium's: other weights and no word of it (`SILENT`), no end (`HUNG`), or
another error (`ERROR`). Flower alone is not there: nodes are threads with sockets of their own.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import shutil
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "engines"))

import pytest
import torch
from session_help import Proxy

import tiny
from deployed import lines_of, run_in_threads
from trillium.config.experiment import ExperimentConfig
from trillium.deploy.keys import make_keys
from trillium.engines.session import Handler
from trillium.errors import UserError
from trillium.experiment.folder import RunFolder
from trillium.experiment.run import build
from trillium.federation.failed import RoundFailed
from trillium.federation.side import Metrics
from trillium.training import meters
from trillium.training.counting import Count
from trillium.wire.message import decode

ROUNDS, CLIENTS = 3, 3
FRAMEWORKS = {
    "fedllm": ("framework.download=change", "wire={up: [sign], down: [int4]}"),
    "kd": ("framework=kd", "framework.direction=client"),
    "split": ("framework=split", "framework.mode=relay"),
}
MOST = 3  # faults of a run
LIMIT_SECONDS = 240.0  # then a run hangs
GOOD = ("equal", "resumed", "recorded", "stopped")


class Killed(BaseException):
    """What a process that is killed would never get to handle."""


class Garbling(Proxy):
    """A link that can flip bits of what crosses."""

    garbles = False

    def changed(self, data: bytes) -> bytes:
        """Return what arrives of what was sent."""
        if not self.garbles or len(data) < 100:
            return data
        self.garbles = False
        return data[:60] + bytes([data[60] ^ 1]) + data[61:]


@dataclass
class Fault:
    """One fault, which happens once: at the `at`-th ask of a round, or of an engine to keep a state.

    Attributes:
        act: what happens: to the ask, its true answer, and the drill.
        saves: whether it happens to an ask to keep a state.
        happened: whether it did; what asks for more than there is happens never.
    """

    act: Callable[[Drill, bytes, Handler], bytes]
    saves: bool = False
    round: int = 0
    at: int = 0
    happened: bool = False


@dataclass
class Drill:
    """One run with its faults."""

    rng: random.Random
    folder: Path
    faults: list[Fault]
    link: Garbling | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def through(self, port: int) -> int:
        """Lay the link."""
        self.link = Garbling(port)
        return self.link.port

    def spoil(self, data: bytes, handler: Handler) -> bytes:
        """Answer an ask of the framework, unless the fault is due."""
        due = self._due(data[:3] != b"TRP" and decode(data).meta["round"], saves=False)
        return due.act(self, data, handler) if due else handler(data)

    def control(self, data: bytes, handler: Handler) -> bytes:
        """Answer an ask of the engine, unless the fault is due."""
        verb, number = json.loads(data)
        due = self._due(number, saves=True) if verb == "save" else None
        return due.act(self, data, handler) if due else handler(data)

    def _due(self, number: object, *, saves: bool) -> Fault | None:
        with self._lock:
            for fault in self.faults:
                if fault.happened or fault.saves != saves or fault.round != number:
                    continue
                fault.at -= 1
                if fault.at == 0:
                    fault.happened = True
                    return fault
            return None

    def observe(self, line: Metrics) -> None:
        """Die after a round, if the server is to."""
        for fault in self.faults:
            if fault.act is server_dies and fault.round == line["round"] and not fault.happened:
                fault.happened = True
                raise Killed


def killed_before(drill: Drill, data: bytes, handler: Handler) -> bytes:
    """Kill the node before it has done what it is asked."""
    raise Killed


def killed_after(drill: Drill, data: bytes, handler: Handler) -> bytes:
    """Kill the node when it has, before it can say so."""
    handler(data)
    raise Killed


def full_disk(drill: Drill, data: bytes, handler: Handler) -> bytes:
    """Let the node find no room on its disk."""
    raise OSError(28, "No space left on device", "/a/path/of/the/node")


def hangs(drill: Drill, data: bytes, handler: Handler) -> bytes:
    """Let the node answer when nobody waits for it any more."""
    reply = handler(data)
    time.sleep(3.0)  # longer than the deadline
    return reply


def all_links(drill: Drill, data: bytes, handler: Handler) -> bytes:
    """Cut all links for a moment."""
    assert drill.link is not None
    drill.link.cut()
    threading.Timer(drill.rng.uniform(0.1, 1.0), drill.link.restore).start()
    return handler(data)


def silent_links(drill: Drill, data: bytes, handler: Handler) -> bytes:
    """Let all links swallow what is sent, for a moment."""
    assert drill.link is not None
    drill.link.swallow()
    threading.Timer(drill.rng.uniform(0.1, 1.0), lambda: _let_back(drill.link)).start()
    return handler(data)


def _let_back(link: Garbling | None) -> None:
    assert link is not None
    link.cut()  # what was swallowed is gone, and the connections with it
    link.restore()


def slow_link(drill: Drill, data: bytes, handler: Handler) -> bytes:
    """Slow all links down."""
    assert drill.link is not None
    drill.link.delay_seconds = 0.05
    return handler(data)


def garbled(drill: Drill, data: bytes, handler: Handler) -> bytes:
    """Flip a bit of what crosses next."""
    assert drill.link is not None
    drill.link.garbles = True
    return handler(data)


def files_lost(drill: Drill, data: bytes, handler: Handler) -> bytes:
    """The process dies, and its newest file with it: a disk that lied, or a backup put back."""
    kept = sorted((drill.folder / "nodes").glob("*/runs/run/*.pt"))
    if kept:
        drill.rng.choice(kept).unlink()
    raise Killed


def garbage(drill: Drill, data: bytes, handler: Handler) -> bytes:
    """Answer with what is no message."""
    return drill.rng.randbytes(1000)


def server_dies(drill: Drill, data: bytes, handler: Handler) -> bytes:
    """Nothing at a node; see `Drill.observe`."""
    return handler(data)


FAULTS = {
    "killed in an ask": Fault(killed_before),
    "killed with its answer": Fault(killed_after),
    "killed before it keeps": Fault(killed_before, saves=True),
    "killed when it has kept": Fault(killed_after, saves=True),
    "disk full": Fault(full_disk, saves=True),
    "files lost": Fault(files_lost, saves=True),
    "hangs": Fault(hangs),
    "all links cut": Fault(all_links),
    "all links cut, keeping": Fault(all_links, saves=True),
    "all links silent": Fault(silent_links),
    "slow link": Fault(slow_link),
    "garbled link": Fault(garbled),
    "answers garbage": Fault(garbage),
    "server killed": Fault(server_dies, at=-1),
}


def weights(folder: Path) -> bytes | None:
    """Return what a run has trained."""
    path = folder / "adapter" / "adapter_model.safetensors"
    if path.exists():
        return path.read_bytes()
    clients = sorted(folder.glob("clients/*/adapter_model.safetensors"))
    return b"".join(found.read_bytes() for found in clients) or None


def has_record(folder: Path) -> bool:
    """Whether a run says that it is not what it would have been."""
    return any(line["missing"] for line in lines_of(folder / "metrics.jsonl"))


@contextmanager
def uncounted(device: torch.device, resident: object) -> Iterator[Count]:
    """Count neither FLOPs nor memory, which takes long."""
    yield Count(device)


def drill(
    config: ExperimentConfig,
    keys: Path,
    folder: Path,
    names: Sequence[str],
    rng: random.Random,
    local: Path,
) -> str:
    """Run with some faults, and return what became of it."""
    faults = [
        replace(
            FAULTS[name],
            round=rng.randint(1, ROUNDS),
            at=FAULTS[name].at or rng.randint(1, CLIENTS),
        )
        for name in names
    ]
    found = Drill(rng, folder, faults)
    outcome: list[str] = []

    def go(run: RunFolder, *, spoilt: bool) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(meters, "counting", uncounted)
            run_in_threads(
                config, keys, run, patch,
                found.observe if spoilt else None,
                found.control if spoilt else None,
                found.spoil if spoilt else None,
                found.through if spoilt else None,
                repeats=2, seconds=(10.0, 2.0) if spoilt else (60.0, 60.0),
            )  # fmt: skip

    def to_its_end() -> None:
        try:
            run, became = RunFolder(folder, "drill"), "equal"
            for _ in faults:  # started again, as long as one may still come
                try:
                    go(run, spoilt=True)
                    break
                except (RoundFailed, UserError, Killed):
                    if found.link is not None:
                        found.link.close()
                    run, became = RunFolder.reopen(folder), "resumed"
            else:
                go(run, spoilt=False)
            outcome.append(became)
        except RoundFailed as error:
            lost = "files lost" in names and "it came back with" in str(error)
            outcome.append("stopped" if lost else f"ERROR RoundFailed: {error}")
        except Exception as error:
            outcome.append(f"ERROR {type(error).__name__}: {error}")

    thread = threading.Thread(target=to_its_end, daemon=True)
    thread.start()
    thread.join(LIMIT_SECONDS)
    if found.link is not None:
        found.link.close()
    if not outcome:
        return "HUNG"
    if outcome[0] not in ("equal", "resumed"):
        return outcome[0]
    if weights(folder) == weights(local) and not has_record(folder):
        return outcome[0] if any(f.happened for f in faults) else "equal, as none happened"
    return "recorded" if has_record(folder) else "SILENT"


def run_drills(
    num_faults: int, seed: int, only: int | None, say: Callable[[str], object], most: int = MOST
) -> Counter[tuple[str, str]]:
    """Draw faults, and return how often each outcome came of runs with each."""
    rng, table = random.Random(seed), Counter[tuple[str, str]]()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        hub = tiny.write_hub(root / "hub")
        make_keys(root / "keys", ["127.0.0.1"], [f"client-{i}" for i in range(CLIENTS)])
        locals_: dict[str, Path] = {}
        number = -1
        while table.total() < num_faults:
            number += 1
            framework = rng.choice([*FRAMEWORKS])
            faults = [rng.choice([*FAULTS]) for _ in range(rng.randint(1, most))]
            lax = ("fleet.min_replies=2",) if rng.random() < 0.5 else ()
            words = (*FRAMEWORKS[framework], f"rounds={ROUNDS}", "training.local_steps=2", *lax)
            config = tiny.experiment_config(hub, *words)
            local = root / f"local-{framework}"
            if framework not in locals_:
                locals_[framework] = local
                build(config, RunFolder(local, "local")).run()
            own = random.Random(rng.random())
            if only not in (None, number):
                continue
            folder, start = root / f"run-{number}", time.perf_counter()
            outcome = drill(config, root / "keys", folder, faults, own, local)
            table.update((fault, outcome) for fault in faults)
            kind = "lax" if lax else "strict"
            seconds = time.perf_counter() - start
            say(f"{number}: {framework}, {kind}, {' + '.join(faults)}: {outcome} ({seconds:.1f} s)")
            shutil.rmtree(folder, ignore_errors=True)
            if only is not None:
                break
    return table


def main() -> None:
    """Draw, and print the table."""
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    words.add_argument("--faults", type=int, default=50)
    words.add_argument("--seed", type=int, default=0)
    words.add_argument("--only", type=int, help="do this one alone, and show the log")
    words.add_argument("--flower", action="store_true", help="on Flower's processes, minutes each")
    given = words.parse_args()
    warnings.simplefilter("ignore")
    if given.only is None:
        logging.disable(logging.CRITICAL)
    else:
        logging.basicConfig(level=logging.INFO, format="%(relativeCreated)d %(message)s")

    def say(line: str) -> None:
        print(line, flush=True)

    if given.flower:
        import chaos_flower

        with tempfile.TemporaryDirectory() as scratch:
            table = chaos_flower.run_drills(given.faults, given.seed, Path(scratch), say)
    else:
        table = run_drills(given.faults, given.seed, given.only, say)
    print()
    for fault in sorted({fault for fault, _ in table}):
        found = {outcome: n for (name, outcome), n in sorted(table.items()) if name == fault}
        print(f"{fault}: " + ", ".join(f"{n} {o}" for o, n in found.items()))
    bad = sum(n for (_, outcome), n in table.items() if not outcome.startswith(GOOD))
    print(f"{sum(table.values())} faults, {bad} of them not as they must be (seed {given.seed})")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
