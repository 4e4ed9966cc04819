"""The tables of benchmarks/frontier_fedllm.py in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from frontier_curves import Curve, Point, a_round, best, first, within
from trillium.report import human
from trillium.report.measures import show_bytes

if TYPE_CHECKING:
    from frontier_results import Entry, Results

BUDGETS = (0.05e6, 0.1e6, 0.2e6, 0.5e6, 0.85e6, 2e6, 5e6, 10e6)
ROUNDS = (0, 2, 4, 6, 10, 14, 20, 30)
BASELINE, CENTRAL = "fedavg", "centralised"
MARGIN, FEWER, SHARE, MOST = 0.01, 100.0, 0.9, 0.85e6  # of the two targets


def tables(results: Results) -> str:
    """Return all tables of what has finished."""
    lines = ["# Accuracy against bytes: FedLLM on Banking77", "", results.recipe["preface"]]
    for partition in results.partitions:
        lines += _partition(results, partition)
    if results.references:
        lines += ["With all training rows in one place, without a language model:", ""]
    for name, scores in results.references.items():
        lines.append(f"- {name}: accuracy {human.percent(scores['accuracy'])}")
    lines += [*_tuning(results), *_made(results)]
    return "\n".join(lines) + "\n"


def _partition(results: Results, partition: str) -> list[str]:
    found = {arm: results.curve(partition, arm) for arm in results.recipe["arms"]}
    arms = {arm: curve for arm, curve in found.items() if curve}
    if not arms:
        return []
    num_seeds = sorted({len(results.seeds(partition, arm)) for arm in arms})
    counts = " or ".join(map(str, num_seeds))
    lines = [f"## {partition}", "", f"![]({results.image(partition).name})", ""]
    lines += [f"Mean ± standard deviation over {counts} seeds. Bytes are up and down, per client."]
    lines += ["", *_frontier(results, partition, arms), ""]
    lines += [*_targets(results, arms), ""]
    lines += ["At equal bytes, the last evaluation that cost no more:", ""]
    sending = {arm: curve for arm, curve in arms.items() if arm != CENTRAL}
    rows = [
        [results.title(arm), *(_accuracy(within(curve, limit)) for limit in BUDGETS)]
        for arm, curve in sending.items()
    ]
    lines += [*_table(["Arm", *map(show_bytes, BUDGETS)], rows), "", "At equal rounds:", ""]
    rounds = [n for n in ROUNDS if any(p.round == n for c in arms.values() for p in c)]
    rows = [
        [results.title(arm), *(_accuracy(_at(curve, number)) for number in rounds)]
        for arm, curve in arms.items()
    ]
    return [*lines, *_table(["Arm", *(f"round {n}" for n in rounds)], rows), ""]


def _frontier(results: Results, partition: str, arms: Mapping[str, Curve]) -> list[str]:
    """Return the main table."""
    reference, goal = _goal(arms)
    others = [arms[arm] for arm in results.recipe["baseline_schedules"] if arm in arms]
    reached = [point for curve in others if (point := _first(curve, goal)) is not None]
    cheapest = min((point.bytes_total for point in reached), default=None)
    rows = []
    for arm, curve in arms.items():
        top, there = best(curve), _first(curve, goal)
        assert top is not None
        sends = top.bytes_total > 0
        rows.append([
            results.title(arm),
            _accuracy(curve[0]) if curve[0].bytes_total else human.NONE,
            _accuracy(top),
            str(top.round),
            _bytes(top.bytes_total) if sends else "none",
            _bytes(a_round(curve)) if sends else "none",
            _bytes(there.bytes_total if there and sends else None),
            _times(reference.bytes_total if reference else None, there),
            _times(cheapest, there),
            str(len(results.seeds(partition, arm))),
        ])  # fmt: skip
    wanted = "the goal" if goal is None else f"{human.percent(goal)}"
    titles = ["Arm", "Head alone", "Best accuracy", "Round", "Bytes until then",
              "Bytes of a round", f"Bytes to {wanted} (FedAvg-LoRA's best − 1 pt)",
              "Times fewer than FedAvg-LoRA to its best",
              f"Times fewer than FedAvg-LoRA to {wanted}", "Seeds"]  # fmt: skip
    return _table(titles, rows)


def _targets(results: Results, arms: Mapping[str, Curve]) -> list[str]:
    """Return a line for each target: met or not, and by which arm."""
    ours = {arm: arms[arm] for arm in results.recipe["ours"] if arm in arms}
    reference, goal = _goal(arms)
    central = best(arms.get(CENTRAL, []))
    lines = ["Targets:", ""]
    if reference is not None:
        found = _cheapest(ours, lambda curve: _first(curve, goal))
        ratio = reference.bytes_total / found[1].bytes_total if found else 0.0
        by = _by(results, found) + (f", {ratio:.0f} times fewer" if found else "")
        lines.append(
            f"- FedAvg-LoRA's best ({_accuracy(reference)} for {_bytes(reference.bytes_total)}) "
            f"less 1 pt, for at least 100 times fewer bytes: **{_met(ratio >= FEWER)}** ({by})"
        )
    if central is not None:
        share = SHARE * central.accuracy.mean
        found = _cheapest(ours, lambda curve: first(curve, share))
        met = found is not None and found[1].bytes_total <= MOST
        lines.append(
            f"- 90 % of centralised accuracy ({human.percent(share)}, of {_accuracy(central)}), "
            f"for at most 0.85 MB in all: **{_met(met)}** ({_by(results, found)})"
        )
    return lines


def _tuning(results: Results) -> list[str]:
    """Return the grids, each with its best accuracy by partition."""
    if not any("~" in entry["arm"] for entry in results.entries):
        return []
    seed = results.recipe["tuning"]["seed"]
    lines = ["", "## Tuning", "", f"Best accuracy over the rounds, with seed {seed}.", ""]
    rows = []
    for label, words in results.grid.items():
        found = [results.best(partition, label, seed) for partition in results.partitions]
        if any(found):
            shown = [human.NONE if value is None else human.percent(value) for value in found]
            rows.append([results.title(label.partition("~")[0]), f"`{' '.join(words)}`", *shown])
    return [*lines, *_table(["Arm", "Settings", *results.partitions], rows)]


def _made(results: Results) -> list[str]:
    """Return what the runs were made with."""
    made: dict[str, list[Entry]] = {}
    for entry in results.entries:
        versions = ", ".join(
            f"{name} {entry['versions'][name]}"
            for name in ("trillium", "torch", "transformers", "peft")
            if name in entry["versions"]
        )
        commit = (entry["git_sha"] or "unknown")[:10]
        how = f"{entry['device']}, {entry['dtype']}, {versions}, commit {commit}"
        made.setdefault(how, []).append(entry)
    lines = ["", "Made with:", ""]
    for how, entries in made.items():
        hours = sum(entry["seconds"] for entry in entries) / 3600
        rows = f"{entries[0]['num_train']:,} training and {entries[0]['num_test']:,} test rows"
        lines.append(f"- {how}: {len(entries)} runs, {hours:.1f} h in all, {rows}")
    return lines


def _goal(arms: Mapping[str, Curve]) -> tuple[Point | None, float | None]:
    """Return the baseline's best, and the accuracy that is to be reached."""
    reference = best(arms.get(BASELINE, []))
    return reference, None if reference is None else reference.accuracy.mean - MARGIN


def _first(curve: Curve, goal: float | None) -> Point | None:
    return None if goal is None else first(curve, goal)


def _at(curve: Curve, number: int) -> Point | None:
    return next((point for point in curve if point.round == number), None)


Found = tuple[str, Point]


def _cheapest(ours: Mapping[str, Curve], at: Callable[[Curve], Point | None]) -> Found | None:
    found = [(arm, point) for arm, curve in ours.items() if (point := at(curve)) is not None]
    return min(found, key=lambda pair: pair[1].bytes_total, default=None)


def _by(results: Results, found: Found | None) -> str:
    if found is None:
        return "none of ours gets there"
    arm, point = found
    return f"{results.title(arm)}: {_accuracy(point)} for {_bytes(point.bytes_total)}"


def _met(is_met: bool) -> str:
    return "met" if is_met else "not met"


def _accuracy(point: Point | None) -> str:
    return human.NONE if point is None else human.percent(point.accuracy.mean, point.accuracy.sd)


def _bytes(value: float | None) -> str:
    return human.NONE if value is None else show_bytes(value)


def _times(reference: float | None, point: Point | None) -> str:
    if reference is None or point is None or not point.bytes_total:
        return human.NONE
    return f"{human.significant(reference / point.bytes_total)}×"


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (titles, ["---"] * len(titles), *rows)]
