"""The parts of the page that are read off runs: their data, what crossed, commands, versions."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trillium.report.bars import bytes_by_kind
from trillium.report.human import duration, show_bytes
from trillium.report.measure import Measure
from trillium.report.read import Run, number
from trillium.report.style import kind_colours
from trillium.report.summary import Row


def tells(row: Row, measure: Measure) -> bool:
    """Whether a measure says something: what crossed the wire once, mostly nothing, may be 0."""
    stat = row.values.get(measure.name)
    return stat is not None and (stat.mean != 0 or "_once_" not in measure.name)


def told_of(run: Run) -> dict[str, Any]:
    """Return how a run was made and how it ended."""
    seconds = number(run.status.get("seconds"))
    return {
        "folder": run.folder.name,
        "arm": run.arm,
        "seed": run.seed,
        "state": run.state,
        "started": str(run.status.get("started") or "")[:19].replace("T", " "),
        "seconds": "" if seconds is None else duration(seconds),
        "device": run.env.get("device") or "",
        "python": run.env.get("python") or "",
        "git_sha": str(run.env.get("git_sha") or "")[:12],
    }


def data_of(runs: Sequence[Run]) -> dict[str, Any] | None:
    """Return sizes of the data of the run whose partition is drawn, and whether all runs share it."""
    told = {run.folder: run.data.get("clients") or {} for run in runs}
    # In a private run that was deployed, clients say nothing.
    known = [run for run in runs if told[run.folder] and all(told[run.folder].values())]
    if not known:
        return None
    data = known[0].data
    sizes = [int(client.get("num_examples") or 0) for client in data["clients"].values()]
    return {
        "folder": known[0].folder.name,
        "num_clients": len(sizes),
        "train": sum(sizes),
        "least": min(sizes),
        "most": max(sizes),
        "public": (data.get("public") or {}).get("num_examples"),
        "test": (data.get("test") or {}).get("num_examples"),
        "num_labels": len(data.get("labels") or []),
        "is_shared": all(run.data["clients"] == data["clients"] for run in known),
    }


def once(rows: Sequence[Row]) -> list[tuple[str, list[str]]]:
    """Return once-only transfers: a line per thing, a column per arm; of the first counted run."""
    things = dict.fromkeys(thing for row in rows for thing in row.counted[0].once)
    return [
        (
            thing.replace("_", " "),
            [
                show_bytes(row.counted[0].once[thing]) if thing in row.counted[0].once else "–"
                for row in rows
            ],
        )
        for thing in things
    ]


@dataclass(frozen=True)
class Bar:
    """What an arm sends in one direction, per client and round.

    Attributes:
        parts: kind of tensor, share in per cent, and size for people.
    """

    arm: str
    direction: str
    size: str
    parts: list[tuple[str, float, str]]


def bars(rows: Sequence[Row]) -> tuple[list[Bar], dict[str, str]]:
    """Return what crosses the wire, and the colours of the kinds of tensors."""
    found = [(row.arm, kinds) for row in rows if (kinds := bytes_by_kind(row))]
    colours = kind_colours(kind for _, kinds in found for _, kind in kinds)
    made = []
    for arm, kinds in found:
        for way in ("up", "down"):
            sizes = {kind: kinds.get((way, kind), 0.0) for kind in colours}
            total = sum(sizes.values())
            parts = [(kind, 100 * s / total, show_bytes(s)) for kind, s in sizes.items() if s]
            made.append(Bar(arm, way, show_bytes(total), parts))
    return made, colours


@dataclass(frozen=True)
class Commands:
    """Commands that can be pasted.

    Attributes:
        given: by which the runs were made.
        useful: what can be done with them, in words and as a command.
        again: those that make single runs again.
    """

    given: list[str]
    useful: list[tuple[str, str]]
    again: list[str]


def commands(folder: Path, runs: Sequence[Run]) -> Commands:
    """Return the commands of a report."""
    given: dict[str, None] = {}
    for run in runs:
        argv = run.env.get("argv")
        if isinstance(argv, list) and argv:
            program = Path(str(argv[0])).name
            words = ["trillium" if program == "__main__.py" else program, *map(str, argv[1:])]
            given[shlex.join(words)] = None
    useful = [("Write this report again", _line("report", folder))]
    if any(run.state in ("stopped", "failed") for run in runs):
        useful.append(("Go on with what has not finished", _line("resume", folder)))
    whole = [run for run in runs if run.state == "finished" and (run.folder / "adapter").is_dir()]
    for run in whole[:1]:
        predict, export = _line("predict", run.folder), _line("export", run.folder)
        useful.append((f"Let the model of {run.arm} answer your rows", f"{predict} my_rows.csv"))
        useful.append((f"Save the whole model of {run.arm}", f"{export} --to my_model"))
    return Commands([*given], useful, [_line("run", run.folder / "config.yaml") for run in runs])


def _line(verb: str, path: Path) -> str:
    """Return a command about a path: from here if it lies below, else a whole one."""
    whole, here = path.resolve(), Path.cwd()
    shown = whole.relative_to(here) if whole.is_relative_to(here) else whole
    return shlex.join(["trillium", verb, str(shown)])


def versions(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Return packages and the version (or versions, where runs differ) that ran."""
    found: dict[str, dict[str, None]] = {}
    for run in runs:
        known = run.env.get("versions")
        for package, version in (known if isinstance(known, Mapping) else {}).items():
            found.setdefault(str(package), {})[str(version)] = None
    return [(package, ", ".join(texts)) for package, texts in sorted(found.items())]
