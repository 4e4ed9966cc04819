"""Run folders read back: what a run was, what it measured, and what crossed the wire.

Every file may be missing or cut short, because a report is wanted most of a run that failed. What
could not be read is left out and said in `Run.notes`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from trillium.errors import UserError
from trillium.files import is_run_by_a_process
from trillium.report.traffic import Traffic, TrafficSum

RUN_FILES = ("status.json", "config.yaml", "metrics.jsonl")
ANSWERS = "answers.json"
FINETUNED = "finetuned.json"
COMPARE_FILE, ABOUT_FILE = "compare.yaml", "about.yaml"


@dataclass(frozen=True)
class Run:
    """One run folder, read.

    `plan` is what was predicted before it began, empty where nothing was; `answers` is what its
    model said of the held-out rows, empty where that was not kept; `finetuned` what clients measured
    before and after they went on by themselves, empty where they did not.
    `evaluations` are the lines of `metrics.jsonl`, one per round, in the order of the rounds.
    `traffic` is None where messages were exchanged but no ledger is left of them.
    """

    folder: Path
    arm: str
    seed: int | None
    state: str
    status: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    env: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    once: dict[str, int] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)
    answers: dict[str, Any] = field(default_factory=dict)
    finetuned: dict[str, Any] = field(default_factory=dict)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    traffic: Traffic | None = field(default_factory=Traffic)
    notes: tuple[str, ...] = ()

    @property
    def num_clients(self) -> int:
        """Number of clients in the federation, asked or not; those asked if data.json is lost."""
        asked = self.traffic.clients if self.traffic else ()
        return len(self.data.get("clients") or asked)

    @property
    def framework(self) -> str:
        """Name of the framework, empty where the config is lost."""
        framework = self.config.get("framework")
        return str(framework.get("name", "") if isinstance(framework, dict) else framework or "")

    @property
    def kept_round(self) -> int:
        """The round whose model the run ships: the last, or the best where that one is kept."""
        last = self.evaluations[-1]["round"] if self.evaluations else 0
        found = number(self.status.get("kept_round"))
        return last if found is None else int(found)

    @property
    def ended_early(self) -> bool:
        """Whether it has finished before its last round."""
        rounds = number(self.config.get("rounds"))
        last = self.evaluations[-1]["round"] if self.evaluations else 0
        return self.state == "finished" and rounds is not None and 0 < last < rounds

    @property
    def kept(self) -> list[dict[str, Any]]:
        """The evaluations until that round."""
        return [line for line in self.evaluations if line["round"] <= self.kept_round]

    def last(self, metric: str) -> float | None:
        """The last value of a metric that was evaluated, None where it never was."""
        return _last(self.evaluations, metric)

    def shipped(self, metric: str) -> float | None:
        """The last value of a metric until the round that is kept, None where there is none."""
        return _last(self.kept, metric)


def _last(lines: list[dict[str, Any]], metric: str) -> float | None:
    values = (number(line.get(metric)) for line in reversed(lines))
    return next((value for value in values if value is not None), None)


def number(value: object) -> float | None:
    """Return a JSON value as a float, None where it is not a number."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def is_run_folder(folder: Path) -> bool:
    """Whether a folder holds any of the files by which a run is known."""
    return any((folder / name).is_file() for name in RUN_FILES)


def read_runs(folder: Path) -> list[Run]:
    """Read a run folder, or all runs of a compare folder in the order of its arms.

    Raises:
        UserError: the folder is neither, or a compare folder without a run.
    """
    if not folder.is_dir():
        raise UserError(
            f"folder {str(folder)!r}",
            "there is no such folder",
            "Name a folder that `trillium run` or `trillium compare` wrote",
        )
    if (folder / COMPARE_FILE).is_file():
        runs = [read_run(path) for path in sorted(folder.iterdir()) if is_run_folder(path)]
        if not runs:
            raise UserError(
                f"folder {str(folder)!r}",
                "the comparison in it has not begun its first run",
                "Wait for the first run, then ask again",
            )
        names = list(_read_mapping(folder / COMPARE_FILE, yaml.safe_load, []))
        places = {name: place for place, name in enumerate(names)}

        def order(run: Run) -> tuple[int, str]:
            return places.get(run.folder.name, len(names)), str(run.status.get("started", ""))

        return sorted(runs, key=order)
    if is_run_folder(folder):
        return [read_run(folder)]
    inside = sorted(path.name for path in folder.iterdir() if path.is_dir() and is_run_folder(path))
    raise UserError(
        f"folder {str(folder)!r}",
        f"it is neither a run ({', '.join(RUN_FILES)}) nor a comparison ({COMPARE_FILE})",
        f"Name one of the runs in it: {', '.join(inside[:5])}"
        if inside
        else "Name a folder that `trillium run` or `trillium compare` wrote",
    )


def read_about(folder: Path) -> dict[str, Any]:
    """Return what the recipe of a comparison says beside its settings; nothing where that is lost."""
    return _read_mapping(folder / ABOUT_FILE, yaml.safe_load, [])


def read_run(folder: Path) -> Run:
    """Read one run folder; what is missing or broken in it is noted, never raised."""
    notes: list[str] = []
    status = _read_mapping(folder / "status.json", json.loads, notes)
    config = _read_mapping(folder / "config.yaml", yaml.safe_load, notes)
    by_round = {
        line["round"]: line
        for line in read_lines(folder / "metrics.jsonl", notes)
        if isinstance(line.get("round"), int)  # a resumed run may evaluate a round again
    }
    evaluations = [by_round[index] for index in sorted(by_round)]
    traffic = TrafficSum()
    for line in read_lines(folder / "wire.jsonl", notes):
        traffic.add(line)
    if traffic.num_malformed:
        notes.append(f"wire.jsonl: {traffic.num_malformed} lines lack a field and were left out")
    has_ledger = (folder / "wire.jsonl").is_file()
    # A baseline that asks nobody may have no ledger; then nothing crossed, and that is known.
    is_silent = bool(evaluations) and not any(number(line.get("asked")) for line in evaluations)
    if not has_ledger and not is_silent:
        notes.append("wire.jsonl is missing: what crossed the wire is not known")
    label, _, suffix = folder.name.rpartition("_s")
    named = re.fullmatch(r"\d+", suffix) is not None and bool(label)
    seed = config.get("seed", int(suffix) if named else None)
    once = _read_mapping(folder / "once.json", json.loads, notes)
    # A run on machines of their own has no plan, one that has not finished no answers.
    plan, answers, finetuned = (
        _read_mapping(folder / name, json.loads, notes) if (folder / name).is_file() else {}
        for name in ("plan.json", ANSWERS, FINETUNED)
    )
    run = Run(
        folder=folder,
        arm="",
        seed=seed if isinstance(seed, int) else None,
        state=_state(folder, status),
        status=status,
        config=config,
        env=_read_mapping(folder / "env.json", json.loads, notes),
        data=_read_mapping(folder / "data.json", json.loads, notes),
        once={str(key): int(value) for key, value in once.items() if number(value) is not None},
        plan=plan,
        answers=answers,
        finetuned=finetuned,
        evaluations=evaluations,
        traffic=traffic.result() if has_ledger or is_silent else None,
        notes=tuple(notes),
    )
    arm = status.get("arm") or run.framework or (label if named else folder.name)
    return replace(run, arm=str(arm))


def _state(folder: Path, status: Mapping[str, Any]) -> str:
    """Return how far a run is; one that says it runs, while no process runs it, has been stopped."""
    state = str(status.get("state") or "unknown")
    return "stopped" if state == "running" and not is_run_by_a_process(folder) else state


def _read_mapping(path: Path, parse: Callable[[str], Any], notes: list[str]) -> dict[str, Any]:
    """Read a JSON or YAML mapping; an empty one, and a note, where there is none."""
    try:
        value = parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        notes.append(f"{path.name} is missing")
        return {}
    except (ValueError, yaml.YAMLError):
        notes.append(f"{path.name} could not be read")
        return {}
    if not isinstance(value, dict):
        notes.append(f"{path.name} is not a mapping")
        return {}
    return value


def read_lines(path: Path, notes: list[str]) -> Iterator[dict[str, Any]]:
    """Stream the lines of a JSONL file; a line that a crash cut short is skipped and noted."""
    if not path.is_file():
        return
    skipped = []
    with path.open(encoding="utf-8", errors="replace") as lines:
        for index, text in enumerate(lines, start=1):
            if not text.strip():
                continue
            try:
                line = json.loads(text)
            except ValueError:
                line = None
            if isinstance(line, dict):
                yield line
            else:
                skipped.append(str(index))
    if skipped:
        shown = ", ".join(skipped[:5]) + (" …" if len(skipped) > 5 else "")
        notes.append(f"{path.name}: {len(skipped)} unreadable line(s) left out (line {shown})")
