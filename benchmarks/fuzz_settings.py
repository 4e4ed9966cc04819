"""Configurations drawn at random: each is refused before the first round, or keeps all promises.

    python benchmarks/fuzz_settings.py 5000            so many, from seed 0; ends with what was found
    python benchmarks/fuzz_settings.py 1 --seed 1234   the draw that a finding names

What runs, sends and computes what its plan says; runs again to the same bits; is killed in a round, and
resumed to the same bits; and what it has exported is what it has evaluated. Models, rows and rounds are
tiny.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import random
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from fnmatch import fnmatchcase
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import tiny
import trillium.experiment.run as run_room
from papers import hold
from resumed import assert_resumes
from trillium.component import known
from trillium.config.experiment import ExperimentConfig, Tree, acting, experiment, merge
from trillium.errors import UserError
from trillium.experiment.folder import RunFolder
from trillium.experiment.run import Experiment, build
from trillium.experiment.trained import evaluate_run
from trillium.federation.failed import RoundFailed
from trillium.federation.side import Metrics
from trillium.frameworks import Framework
from trillium.privacy import Guarantee
from trillium.privacy.account import FILE, epsilon, read_account, releases_in
from walk import leaves, others, print_of, tree_of

MOST_CHANGES = 7
REFUSED = 0.1  # share of the refusals by the configuration alone that are kept as they are
HELD = (
    "framework",
    "model.id",
    "model.device",
    "model.attention",
    "report.track",  # what is not installed is refused
    "data.source*",
    "rounds",
    "seed",
)
MOST = 8  # so many steps, epochs and the like
HIDDEN = 0.3  # share of the runs that begin from one of these
_FEDLLM, _VOTES = {"name": "fedllm", "weights": "equal"}, {"name": "kd", "ensemble": "vote"}
_CLIENT, _EXAMPLE = {"name": "client", "noise": 0.7}, {"name": "example", "noise": 0.7}
_SHARES: Tree = {"sums": "masked", "privacy": _CLIENT, "fleet": {"min_replies": 2}}
HIDING: tuple[Tree, ...] = (
    {"framework": _FEDLLM, "privacy": _CLIENT},
    {"framework": "fedkseed", "privacy": _CLIENT},
    {"framework": _VOTES, "privacy": _CLIENT},
    {"framework": _FEDLLM, "privacy": {**_EXAMPLE, "population": 8}},
    {"framework": _FEDLLM, "sums": "masked"},
    {"framework": "fedkseed", "sums": "masked"},
    {"framework": {"name": "kd", "ensemble": "mean"}, "sums": "masked"},
    {"framework": _VOTES, "sums": "masked"},
    {"framework": _FEDLLM, **_SHARES},
    {"framework": _VOTES, **_SHARES},
    {"framework": _FEDLLM, "sums": "masked", "privacy": {**_EXAMPLE, "population": 8}},
)


def main() -> int:
    """Draw, judge, and say what was found; return how many findings there are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    warnings.filterwarnings("ignore")
    # So that noise and masks are the same in every run.
    vars(run_room)["new_secret"] = lambda: bytes(32).hex()
    logging.disable(logging.WARNING)
    seen: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        hub = tiny.write_hub(Path(name) / "hub")
        for seed in range(asked.seed, asked.seed + asked.count):
            base, tree = drawn(hub, random.Random(seed))
            verdict = judge(tree, Path(name) / str(seed))
            seen[verdict.partition(":")[0]] += 1
            if verdict.startswith("finding"):
                print(f"seed {seed}: {verdict}\n    {differences(base, tree)}", flush=True)
    print(", ".join(f"{count} {what}" for what, count in sorted(seen.items())))
    return seen["finding"]


def drawn(hub: Path, draw: random.Random) -> tuple[Tree, Tree]:
    """Return the tree of a tiny run, and one in which some settings are others."""
    task = draw.choice(("classification", "classification", "causal_lm"))
    model = draw.choice(("gpt2", "bert", "llama")) if task == "classification" else "gpt2"
    base = tiny.experiment_config(hub, model=model, task=task).tree()
    start: Tree = {"framework": draw.choice([*known(Framework)])}
    if draw.random() < HIDDEN:
        start = {**draw.choice(HIDING), "training": {"max_length": 24, "local_steps": 2}}
    tree, _ = acting(merge(base, start), {})
    for _ in range(draw.randint(1, MOST_CHANGES)):
        changed = merge(tree, _change(experiment(tree), draw))
        try:
            experiment(changed)
        except UserError:
            if draw.random() < REFUSED:
                return base, changed
        else:
            tree = changed
    return base, tree


def _change(config: ExperimentConfig, draw: random.Random) -> Tree:
    """Return another value of a setting."""
    while True:
        path, annotation, value = draw.choice([*leaves(config)])
        values = [
            other
            for other in others(path, annotation, value)
            if not isinstance(other, int) or other <= MOST
        ]
        if values and not any(fnmatchcase(path, pattern) for pattern in HELD):
            return tree_of(path, draw.choice(values))


def judge(tree: Tree, folder: Path) -> str:
    """Return `refused`, `ran`, `stopped` (too few clients replied), or `finding: …` of one tree."""
    runs: list[Experiment] = []
    try:
        config = experiment(tree)
        runs.append(build(config, RunFolder(folder / "first", "first")))
        runs[0].run()
        _promises(config, runs[0], folder)
    except UserError as error:
        if runs and runs[0].server.round > 0:
            return f"finding: refused in round {runs[0].server.round}: {error}"
        return (
            "refused" if error.given and error.why and error.instead else "finding: no three parts"
        )
    except RoundFailed:
        return "stopped"
    except Exception:
        return f"finding: {traceback.format_exc(limit=-2)}"
    return "ran"


def _promises(config: ExperimentConfig, run: Experiment, folder: Path) -> None:
    """Hold a run to its plan, and to itself: again, resumed, and exported."""
    again = build(config)
    hold(again, peaks=False)
    if isinstance(config.privacy, Guarantee):
        account = folder / "first" / FILE
        spent = epsilon(releases_in(read_account(account)), config.privacy.delta)
        told = run.history[-1]["epsilon"]
        assert told == (spent if math.isfinite(spent) else None), (
            f"epsilon {told}, {spent} by its account"
        )
    if config.sums.hides and config.privacy.unit == "client":
        return  # noise in shares comes from the operating system, and is never drawn again
    assert print_of(run) == print_of(again), "the same run gives something else"
    is_measured = config.evaluation.where != "clients"  # on the rows that an evaluation takes
    if is_measured and (folder / "first" / "adapter").is_dir():
        exported, measured = evaluate_run(folder / "first", {}), _shipped(config, run.history)
        # What was folded into the base may be added in another order.
        close = {
            key: math.isclose(measured[key], value, rel_tol=1e-12)
            for key, value in exported.items()
        }
        wrong = {key: exported[key] for key in close if not close[key]}
        assert not wrong, f"exported is not what was measured: {wrong}, {measured}"
    if (
        config.framework.trains and not config.privacy.unit
    ):  # rounds that run again are counted twice
        assert_resumes(config, folder, peaks=0.03)  # of batches of a few tokens


def _shipped(config: ExperimentConfig, history: list[Metrics]) -> Metrics:
    """Return the evaluation of the model that is shipped."""
    if config.evaluation.keep == "last":
        return history[-1]
    rounds = [line for line in history if line["round"] > 0]
    best = max if config.task.more_is_better else min
    return best(rounds, key=lambda line: float(line[config.task.measure]))  # the first of equals


def differences(base: Tree, tree: Tree) -> str:
    """Return what a tree sets otherwise, as words of the command line."""
    found = []

    def walk(old: object, new: object, path: str) -> None:
        if isinstance(new, dict) and isinstance(old, dict) and old.get("name") == new.get("name"):
            for key in new:
                walk(old.get(key), new[key], f"{path}.{key}" if path else key)
        elif old != new:
            found.append(f"{path}={json.dumps(new)}")

    walk(base, tree, "")
    return " ".join(found)


if __name__ == "__main__":
    sys.exit(main())
