"""What finished runs have measured, gathered from their folders as lines of evidence."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from trillium.config.defaults import value_at
from trillium.errors import UserError
from trillium.plan.evidence import Line, Seed, sign_of
from trillium.plan.point import clients_of, point_of_run
from trillium.report.costs import bytes_per_client, flops_per_client
from trillium.report.read import Run, read_runs

_MEASURES: Final = ("accuracy", "f1_micro", "pearson", "entity_f1", "reward_accuracy", "loss")
_ALIKE: Final = ("adapter", "training", "rounds", "fleet", "tiers", "privacy")


@dataclass(frozen=True)
class Evidence:
    """Lines, and which runs gave none, with the reason."""

    lines: tuple[Line, ...]
    skipped: tuple[str, ...] = ()


def evidence_of(folders: Iterable[Path], *, own: bool = False) -> Evidence:
    """Return what the finished runs in run folders and comparison folders have measured.

    Baselines count for the arms that were measured on the same rows with the same seed, in whichever
    of the folders they are.

    Args:
        own: whether they are the user's.

    Raises:
        UserError: a folder is neither, or no run in it can be used.
    """
    found, skipped = list[tuple[Run, str, float]](), list[str]()
    for folder in folders:
        usable = 0
        for run in read_runs(folder):
            measure, value = _measured(run)
            why = _unusable(run, value)
            if why:
                skipped.append(f"{run.folder.name}: {why}")
            else:
                found.append((run, measure, value))
                usable += 1
        if not usable:
            raise UserError(
                f"--evidence {folder}",
                f"no run in it can be used ({'; '.join(skipped[-3:])})",
                f"Let them finish with: trillium resume {folder}; or name another folder",
            )
    return Evidence(tuple(_lines(found, own)), tuple(skipped))


def _measured(run: Run) -> tuple[str, float]:
    """Return what tells how good the model of a run is; no number where nothing does."""
    for measure in _MEASURES:
        value = run.shipped(measure)
        if value is not None:
            return measure, value
    return "", math.nan


def _unusable(run: Run, value: float) -> str:
    """Return why a run is no evidence; empty where it is."""
    if run.state != "finished":
        return run.state
    if not run.framework or value_at(run.config, "task.name") is None:
        return "its config.yaml is lost or broken"
    if run.seed is None:
        return "its seed is not known"
    return "" if math.isfinite(value) else "nothing was measured"


def _lines(runs: Sequence[tuple[Run, str, float]], own: bool) -> list[Line]:
    """Return a line for each arm and setting, with all its seeds."""
    groups: dict[str, list[tuple[Run, str, float]]] = {}
    for run, measure, value in runs:
        told = {
            k: v for k, v in run.config.items() if k not in ("seed", "evaluation", "report", "plan")
        }
        groups.setdefault(f"{run.arm} {measure} {told}", []).append((run, measure, value))
    found = []
    for group in groups.values():
        first, measure, _ = group[0]
        point = point_of_run(first)
        seeds = {}
        for run, _, value in group:
            assert run.seed is not None
            seeds[run.seed] = Seed(
                seed=run.seed,
                value=value,
                local_only=_baseline("local_only", run, measure, runs),
                centralised=_baseline("centralised", run, measure, runs),
                bytes=bytes_per_client(run),
                flops=flops_per_client(run),
            )
        found.append(
            Line(
                arm=first.arm,
                commit=str(first.env.get("git_sha") or ""),
                measure=measure,
                facts=dict(point.facts),
                settings=dict(point.settings),
                seeds=tuple(seeds[number] for number in sorted(seeds)),
                own=own,
            )
        )
    return found


def _baseline(
    name: str, run: Run, measure: str, runs: Sequence[tuple[Run, str, float]]
) -> float | None:
    """Return what a baseline has measured on the rows of a run, with its seed.

    Of several the one that shares most settings with the run, then the best one.
    """
    sign = sign_of(measure)
    found = [
        (sum(other.config.get(key) == run.config.get(key) for key in _ALIKE), sign * value)
        for other, own, value in runs
        if other.framework == name and own == measure and _rows(other) == _rows(run)
    ]
    return sign * max(found)[1] if found else None


def _rows(run: Run) -> tuple[Any, ...]:
    """Return what tells whether runs saw the same rows, with the same model and seed."""
    held = {n: (own.get("num_examples"), own.get("labels")) for n, own in clients_of(run).items()}
    where = value_at(run.data, "test.digest") or run.folder.parent
    return run.seed, value_at(run.config, "model.id"), where, str(held)
