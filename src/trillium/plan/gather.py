"""What finished runs have measured, gathered from their folders as lines of evidence."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

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


@dataclass(frozen=True)
class _Result:
    """A finished run, what it has measured, and a digest of its rows, model and seed."""

    run: Run
    measure: str
    value: float
    rows: str


def evidence_of(folders: Iterable[Path], *, own: bool = False) -> Evidence:
    """Return what the finished runs in run folders and comparison folders have measured.

    Baselines count for the arms that were measured on the same rows with the same seed, in whichever
    of the folders they are.

    Args:
        own: whether they are the user's.

    Raises:
        UserError: a folder is neither, or no run in it can be used.
    """
    found, skipped = list[_Result](), list[str]()
    for folder in folders:
        before = len(found)
        for run in read_runs(folder):
            measure, value = _measured(run)
            if why := _unusable(run, value):
                skipped.append(f"{run.folder.name}: {why}")
            else:
                found.append(_Result(run, measure, value, _rows(run)))
        if len(found) == before:
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


def _rows(run: Run) -> str:
    """Return what tells whether runs saw the same rows, with the same model and seed."""
    held = {n: (own.get("num_examples"), own.get("labels")) for n, own in clients_of(run).items()}
    where = value_at(run.data, "test.digest") or run.folder.parent
    return f"{run.seed} {value_at(run.config, 'model.id')} {where} {held}"


def _lines(results: Sequence[_Result], own: bool) -> list[Line]:
    """Return a line for each arm and setting, with all its seeds."""
    baselines: dict[tuple[str, str, str], list[_Result]] = {}
    groups: dict[str, dict[int | None, _Result]] = {}
    for one in results:
        baselines.setdefault((one.run.framework, one.measure, one.rows), []).append(one)
        apart = ("seed", "evaluation", "report", "plan")
        told = {key: value for key, value in one.run.config.items() if key not in apart}
        groups.setdefault(f"{one.run.arm} {one.measure} {told}", {})[one.run.seed] = one
    found = []
    for group in groups.values():
        first = next(iter(group.values()))
        point = point_of_run(first.run)
        seeds = [
            Seed(
                seed=one.run.seed or 0,
                value=one.value,
                local_only=_baseline("local_only", one, baselines),
                centralised=_baseline("centralised", one, baselines),
                bytes=bytes_per_client(one.run),
                flops=flops_per_client(one.run),
            )
            for one in group.values()
        ]
        found.append(
            Line(
                arm=first.run.arm,
                commit=str(first.run.env.get("git_sha") or ""),
                measure=first.measure,
                facts=dict(point.facts),
                settings=dict(point.settings),
                seeds=tuple(sorted(seeds, key=lambda seed: seed.seed)),
                own=own,
            )
        )
    return found


def _baseline(
    name: str, result: _Result, baselines: Mapping[tuple[str, str, str], Sequence[_Result]]
) -> float | None:
    """Return what a baseline has measured on the rows of a run, with its seed.

    Of several the one that shares most settings with the run, then the best one.
    """
    sign, config = sign_of(result.measure), result.run.config
    found = [
        (sum(one.run.config.get(key) == config.get(key) for key in _ALIKE), sign * one.value)
        for one in baselines.get((name, result.measure, result.rows), ())
    ]
    return sign * max(found)[1] if found else None
