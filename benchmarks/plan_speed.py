"""How much processor time a plan takes, beside that of importing what it is made with.

Each figure is of a fresh process: its CPU seconds, in user and system mode, as the operating system
counts them once it has ended. The plans and the bare import take turns, and `ratio` is the median of
a plan's seconds by those of the import beside it, which tells a slow machine from a slow plan. A plan
imports with Python's search for reference cycles put off, so the import is also timed in that way. Of
recipes that are shipped it is what planning adds to a run: the data are there, and PyTorch is imported.

    OMP_NUM_THREADS=1 python benchmarks/plan_speed.py
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from measured import write_found

RESULTS = Path(__file__).parent / "results"
GOAL = (
    "the plan of llama-3-8b in less than 5 CPU seconds on one core, and all plans of the default "
    "`trillium compare` in less than 4"
)
RECIPES = ["compare.yaml", "run.yaml", "kd-heterogeneous.yaml"]
IMPORT = "import torch, transformers, peft"
PUT_OFF = f"import gc; gc.disable(); {IMPORT}; gc.freeze()"
PLAN = "from trillium.cli.app import program; program()"
WORDS = ("task=causal_lm", "model.dtype=bfloat16", "data.num_clients=100")
MEMORY = "plan.client.device.memory=4GB"
# As users have it: modules are compiled once, not in each process.
SURROUNDINGS = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
OF_RUNS = """
import sys, time
from pathlib import Path
import trillium
from trillium.config.comparison import comparison
from trillium.config.experiment import read_yaml
from trillium.experiment.run import build
from trillium.plan.result import plan_of_run
from trillium.quiet import quiet_models
quiet_models()
tree = read_yaml(Path(trillium.__file__).parent / "config/recipes" / sys.argv[1])
tree = tree if "arms" in tree else {**tree, "arms": {"run": {}}}
seconds = 0.0
for config in comparison(tree, {}).experiments().values():
    run = build(config)
    before = time.process_time()
    plan_of_run(config, run.server, run.clients)
    seconds += time.process_time() - before
print(seconds)
"""


def cpu_seconds(code: str, words: Sequence[str] = ()) -> float:
    """Return the user and system seconds of a fresh Python process.

    Raises:
        CalledProcessError: it fails.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    call = [sys.executable, "-c", code, *words]
    subprocess.run(call, check=True, stdout=subprocess.DEVNULL, env=SURROUNDINGS)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def planning_seconds(recipe: str) -> float:
    """Return the seconds of planning in the runs of a recipe, built by a fresh process, not run.

    Raises:
        CalledProcessError: it fails.
    """
    call = [sys.executable, "-c", OF_RUNS, recipe]
    done = subprocess.run(call, check=True, stdout=subprocess.PIPE, text=True, env=SURROUNDINGS)
    return float(done.stdout.split()[-1])


def measure(
    models: Sequence[str], recipes: Sequence[str], repetitions: int
) -> list[dict[str, Any]]:
    """Return the seconds of imports, and of plans of models and of recipes, which take turns."""
    imports: list[float] = []
    plans: dict[str, list[float]] = defaultdict(list)
    for _ in range(repetitions):
        imports.append(cpu_seconds(IMPORT))
        plans["the import, cycles put off"].append(cpu_seconds(PUT_OFF))
        for model in models:
            found = cpu_seconds(PLAN, ["plan", model, *WORDS, MEMORY])
            plans[f"trillium plan {model}"].append(found)
        for recipe in recipes:
            plans[f"planning in {recipe}"].append(planning_seconds(recipe))
    rows = [{"what": IMPORT, **_summary(imports), "ratio": 1.0}]
    for what, seconds in plans.items():
        ratios = [plan / bare for plan, bare in zip(seconds, imports, strict=True)]
        rows.append({"what": what, **_summary(seconds), "ratio": statistics.median(ratios)})
    return rows


def _summary(seconds: Sequence[float]) -> dict[str, Any]:
    return {
        "cpu_seconds": statistics.median(seconds),
        "fastest": min(seconds),
        "each": [round(value, 3) for value in seconds],
    }


def show(found: Sequence[dict[str, Any]]) -> None:
    """Print the figures as a table."""
    table = Table("process", "CPU seconds", "fastest", "by the import")
    for row in found:
        table.add_row(
            row["what"], f"{row['cpu_seconds']:.2f}", f"{row['fastest']:.2f}", f"{row['ratio']:.2f}"
        )
    Console(width=100).print(table)


def main() -> None:
    """Measure, print and write `results/plan_speed.json`."""
    parser = argparse.ArgumentParser(description="CPU seconds of a plan")
    parser.add_argument("--models", nargs="+", default=["llama-3-8b", "llama-3-70b"])
    parser.add_argument("--recipes", nargs="*", default=RECIPES)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS / "plan_speed.json")
    options = parser.parse_args()
    load_before = os.getloadavg()[0]
    cpu_seconds(PLAN, ["plan", *options.models[:1], *WORDS])  # all files are read and compiled once
    found = measure(options.models, options.recipes, options.repetitions)
    show(found)
    write_found(options.out, load_before, found, goal=GOAL, words=[*WORDS, MEMORY])


if __name__ == "__main__":
    main()
