"""The drill of `chaos.py` on Flower's own processes: `python benchmarks/chaos.py --flower`.

One federation of a SuperLink, two SuperNodes, their SuperExecs and all that these start; run after run,
with one fault in each: any process is killed (a ServerApp's run is started again), or held still; the
links of all sessions are cut, silent or slow for a moment.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flower_help import Deployment, Run, deployment

import tiny
from chaos import has_record, weights
from trillium.config.experiment import ExperimentConfig
from trillium.deploy.flower import Value
from trillium.deploy.launch import EXECUTOR
from trillium.errors import UserError
from trillium.experiment.folder import RunFolder
from trillium.experiment.run import build

ROUNDS, STARTS = 6, 4
NAMES = ("client-0", "client-1")
COMMON = ("data.num_clients=2", "model.dtype=float32", f"rounds={ROUNDS}")
RECIPES = {
    "fedllm": ("framework=fedllm", "framework.server_optimizer=adam"),
    "kd": ("framework=kd", "framework.direction=both"),
    "split": ("framework=split", "training.local_steps=2"),
}
SETTINGS: dict[str, Value] = {"wait_seconds": 150.0, "deadline_seconds": 60.0}
PATIENCE_SECONDS = 90.0  # until Flower lets a killed SuperNode come back


@dataclass
class Drill:
    """One run that a fault befalls."""

    deployed: Deployment
    rng: random.Random

    def node(self) -> str:
        """Return one of the nodes."""
        return self.rng.choice(NAMES)

    def client_killed(self) -> None:
        """Kill the process that trains."""
        if client := self.deployed.client(self.node()):
            client.kill()

    def client_still(self) -> None:
        """Hold the process that trains still for some seconds."""
        if client := self.deployed.client(self.node()):
            client.suspend()
            time.sleep(self.rng.uniform(1.0, 10.0))
            client.resume()

    def server_killed(self) -> None:
        """Kill the ServerApp."""
        self.deployed.server().kill()

    def supernode_killed(self) -> None:
        """Kill a SuperNode with all that it has started; it is started again."""
        name = self.node()
        self.deployed.running.kill(name)
        self.deployed.running.start_node(name, patience=PATIENCE_SECONDS)

    def superexec_killed(self) -> None:
        """Kill a SuperExec, of the server or a node; it is watched over."""
        name = self.rng.choice([EXECUTOR, *(f"{EXECUTOR}@{node}" for node in NAMES)])
        os.kill(self.deployed.running.processes[name].pid, signal.SIGKILL)

    def superlink_killed(self) -> None:
        """Kill the SuperLink, and start it again."""
        self.deployed.running.kill("superlink")
        self.deployed.running.start_superlink()

    def links_cut(self) -> None:
        """Cut all links of sessions for a moment."""
        self.deployed.link.cut()
        time.sleep(self.rng.uniform(0.1, 3.0))
        self.deployed.link.restore()

    def links_silent(self) -> None:
        """Let all links swallow what is sent, for a moment."""
        self.deployed.link.swallow()
        time.sleep(self.rng.uniform(0.1, 3.0))
        self.deployed.link.cut()
        self.deployed.link.restore()

    def links_slow(self) -> None:
        """Slow all links down."""
        self.deployed.link.delay_seconds = 0.5


FAULTS: dict[str, Callable[[Drill], None]] = {
    "client killed": Drill.client_killed,
    "client held still": Drill.client_still,
    "ServerApp killed": Drill.server_killed,
    "SuperNode killed": Drill.supernode_killed,
    "SuperExec killed": Drill.superexec_killed,
    "SuperLink killed": Drill.superlink_killed,
    "all links cut": Drill.links_cut,
    "all links silent": Drill.links_silent,
    "slow links": Drill.links_slow,
}


def drill(found: Drill, recipe: str, fault: str, local: Path) -> str:
    """Run with one fault, and return what became of it."""
    deployed, became = found.deployed, "equal"
    try:
        run = deployed.submit(recipe, **SETTINGS)
        number = found.rng.randint(0, ROUNDS - 2)
        run.until_round(lambda row: row["round"] >= number, f"round {number}")
        acting = threading.Thread(target=FAULTS[fault], args=(found,), daemon=True)
        acting.start()
        status = run.finish()
        acting.join(2 * PATIENCE_SECONDS)
        for _ in range(STARTS):
            if status.completed:
                break
            became, run = "resumed", deployed.resume(run)
            status = run.finish()
        return _outcome(run, became, local) if status.completed else f"ERROR {status}"
    except AssertionError as error:
        first = str(error).partition("\n")[0]
        return f"HUNG {first}" if "not within" in first else f"ERROR {first}"
    except UserError as error:
        return f"ERROR {error}"


def _outcome(run: Run, became: str, local: Path) -> str:
    if has_record(run.folder):
        return "recorded"
    return became if weights(run.folder) == weights(local) else "SILENT"


def run_drills(
    num_faults: int, seed: int, root: Path, say: Callable[[str], object]
) -> Counter[tuple[str, str]]:
    """Draw faults, and return how often each outcome came of each."""
    rng, table = random.Random(seed), Counter[tuple[str, str]]()
    hub = tiny.write_hub(root / "hub")
    recipes: dict[str, ExperimentConfig] = {}
    for name, words in RECIPES.items():
        recipes[name] = tiny.experiment_config(hub, *COMMON, *words)
        build(recipes[name], RunFolder(root / f"local-{name}", name)).run()
        lax = {"fleet": {"min_replies": 1}}
        recipes[f"{name}-lax"] = ExperimentConfig.model_validate({**recipes[name].tree(), **lax})
    with deployment(root / "federation", recipes, durable=True) as (deployed, _):
        for number in range(num_faults):
            recipe, fault = rng.choice([*recipes]), rng.choice([*FAULTS])
            own, start = random.Random(rng.random()), time.perf_counter()
            local = root / f"local-{recipe.removesuffix('-lax')}"
            outcome = drill(Drill(deployed, own), recipe, fault, local)
            table[fault, outcome] += 1
            say(f"{number}: {recipe}, {fault}: {outcome} ({time.perf_counter() - start:.0f} s)")
    return table
