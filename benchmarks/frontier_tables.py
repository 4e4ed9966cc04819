"""The tables of a frontier benchmark in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from frontier_curves import Curve, Point, a_round, best, first, points, within
from frontier_distillation import distillation
from frontier_markdown import table
from trillium.config.experiment import Tree
from trillium.report import human
from trillium.report.measures import show_bytes

if TYPE_CHECKING:
    from frontier_results import Entry, Results

BASELINE, CENTRAL = "fedavg", "centralised"


def tables(results: Results) -> str:
    """Return all tables of what has finished."""
    lines = [f"# {results.recipe['title']}", "", results.recipe["preface"]]
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
    budgets = results.recipe["budgets"]
    rows = [
        [results.title(arm), *(_accuracy(within(curve, limit)) for limit in budgets)]
        for arm, curve in sending.items()
    ]
    lines += [*table(["Arm", *map(show_bytes, budgets)], rows), "", "At equal rounds:", ""]
    shown = results.recipe["shown_rounds"]
    rounds = [n for n in shown if any(p.round == n for c in arms.values() for p in c)]
    rows = [
        [results.title(arm), *(_accuracy(_at(curve, number)) for number in rounds)]
        for arm, curve in arms.items()
    ]
    lines += [*table(["Arm", *(f"round {n}" for n in rounds)], rows), ""]
    return [*lines, *distillation(results, partition, arms)]


def _frontier(results: Results, partition: str, arms: Mapping[str, Curve]) -> list[str]:
    """Return the main table."""
    reference, goal = _goal(results, arms)
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
    margin = points(results.recipe["margin"])
    titles = ["Arm", "Head alone", "Best accuracy", "Round", "Bytes until then",
              "Bytes of a round", f"Bytes to {wanted} (FedAvg-LoRA's best − {margin})",
              "Times fewer than FedAvg-LoRA to its best",
              f"Times fewer than FedAvg-LoRA to {wanted}", "Seeds"]  # fmt: skip
    return table(titles, rows)


def _targets(results: Results, arms: Mapping[str, Curve]) -> list[str]:
    """Return a line for each target: met or not, and by which arm."""
    ours = {arm: arms[arm] for arm in results.recipe["ours"] if arm in arms}
    lines = ["Targets:", ""]
    for target in results.recipe["targets"]:
        reference = best(arms.get(target["of"], []))
        if reference is not None:
            lines.append(f"- {_target(results, target, reference, ours)}")
    return lines


def _target(results: Results, target: Tree, reference: Point, ours: Mapping[str, Curve]) -> str:
    """Return a target in words, and whether it is met.

    Args:
        results: has the titles and the margin.
        target: an accuracy (a `share` of that of the arm `of`, or its best less the margin), and bytes
            (`max_bytes`, or so many `times_fewer` than that arm sends until then).
        reference: the best of that arm.
        ours: the arms that may meet it.
    """
    title, margin = results.title(target["of"]), results.recipe["margin"]
    if "share" in target:
        goal = target["share"] * reference.accuracy.mean
        wanted = (
            f"{100 * target['share']:.0f} % of {title.lower()} accuracy ({human.percent(goal)}, "
            f"of {_accuracy(reference)})"
        )
    else:
        goal = reference.accuracy.mean - margin
        sent = f" for {_bytes(reference.bytes_total)}" if reference.bytes_total else ""
        wanted = f"{title}'s best ({_accuracy(reference)}{sent}) less {points(margin)}"
    found = _cheapest(ours, lambda curve: first(curve, goal))
    by, ratio = _by(results, found), 0.0
    if found is not None and reference.bytes_total:
        ratio = reference.bytes_total / found[1].bytes_total
        by += f", {ratio:.0f} times fewer"
    if "max_bytes" in target:
        limit = f"at most {target['max_bytes'] / 1e6:g} MB in all"
        met = found is not None and found[1].bytes_total <= target["max_bytes"]
    else:
        limit = f"at least {target['times_fewer']} times fewer bytes"
        met = ratio >= target["times_fewer"]
    return f"{wanted}, for {limit}: **{_met(met)}** ({by})"


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
    return [*lines, *table(["Arm", "Settings", *results.partitions], rows)]


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


def _goal(results: Results, arms: Mapping[str, Curve]) -> tuple[Point | None, float | None]:
    """Return the baseline's best, and the accuracy that is to be reached."""
    reference = best(arms.get(BASELINE, []))
    margin = results.recipe["margin"]
    return reference, None if reference is None else reference.accuracy.mean - margin


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
