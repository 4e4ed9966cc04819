"""`trillium ls`: the runs that there are, and how far each of them is."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trillium.cli.words import AsJson
from trillium.errors import UserError

if TYPE_CHECKING:
    from trillium.report.read import Run

Line = dict[str, Any]


def list_runs(
    out: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="Folder to look in.")] = Path(
        "runs"
    ),
    as_json: AsJson = False,
) -> None:
    """List the runs below a folder.

    Into a pipe it writes one line for each run, with tabs between the columns.
    """
    from trillium.report.read import read_run

    paths = sorted({path.parent for path in out.rglob("status.json")})
    if not paths:
        raise UserError(
            str(out), "there are no runs below it", "Run `trillium compare`, or give another folder"
        )
    lines = [_line(read_run(path)) for path in paths]
    if as_json:
        print(json.dumps(lines, indent=1))
    elif sys.stdout.isatty():
        _show(lines)
    else:
        print(*lines[0], sep="\t")
        for line in lines:
            print(*("" if value is None else value for value in line.values()), sep="\t")


def _line(run: Run) -> Line:
    """Return what is said of a run."""
    from trillium.report.costs import bytes_per_client
    from trillium.report.measure import MAIN
    from trillium.report.read import COMPARE_FILE

    known = (*MAIN, "loss")
    measure = next((name for name in known if run.shipped(name) is not None), None)
    parent = run.folder.parent
    return {
        "folder": str(run.folder),
        "comparison": str(parent) if (parent / COMPARE_FILE).exists() else None,
        "arm": run.arm,
        "framework": run.framework or None,
        "seed": run.seed,
        "model": _short(_at(run.config, "model", "id")),
        "data": _data(run.config),
        "rounds": run.evaluations[-1]["round"] if run.evaluations else 0,
        "of_rounds": _at(run.config, "rounds"),
        "started": run.status.get("started"),
        "state": run.state,
        "measure": measure,
        "value": run.shipped(measure) if measure else None,
        "bytes_per_client": bytes_per_client(run),
    }


def _at(tree: Mapping[str, Any], *path: str) -> Any:
    """Return what stands at a path of a configuration that may be lost, or be of another version."""
    found: Any = tree
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _data(config: Mapping[str, Any]) -> str | None:
    source = _at(config, "data", "source")
    named = _at(config, "data", "source", "train") or _at(config, "data", "source", "path")
    return _short(named or _at(config, "data", "source", "name") or source)


def _short(name: object) -> str | None:
    """Return the last part of a path of this machine, and any other name as it is."""
    if name is None:
        return None
    return Path(str(name)).name if Path(str(name)).is_absolute() else str(name)


def _show(lines: Iterable[Line]) -> None:
    """Print runs for a person: under each folder the runs in it, whole names at any width."""
    from trillium.report.human import NONE

    for folder, found in groupby(lines, key=lambda line: line["comparison"] or line["folder"]):
        runs = list(found)
        print(folder)
        first = runs[0]
        began = (
            first["started"]
            and f"{datetime.fromisoformat(first['started']).astimezone():%Y-%m-%d %H:%M}"
        )
        known = next((line for line in runs if line["model"]), first)
        about = (known["model"], known["data"], began)
        print("  " + " · ".join(str(word or NONE) for word in about))
        names = [
            Path(line["folder"]).name
            if line["comparison"]
            else f"{line['arm']}, seed {line['seed']}"
            for line in runs
        ]
        width = max(map(len, names))
        for name, line in zip(names, runs, strict=True):
            print(f"    {name:{width}}  {_result(line)}")


def _result(line: Line) -> str:
    """Return how far a run is, and what it has brought."""
    from trillium.report.human import NONE, prefixed
    from trillium.report.measures import BY_NAME

    measure, sent = line["measure"], line["bytes_per_client"]
    rounds = f"round {line['rounds']}/{line['of_rounds'] or NONE}"
    quality = NONE
    if measure is not None:
        known = BY_NAME[measure]
        quality = f"{known.short.lower()} {known.show(line['value'], None)}"
    crossed = NONE if sent is None else prefixed(sent, "B")
    return f"{line['state']:8}  {rounds:11}  {quality:16}  {crossed:>8} per client"


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command(name="ls")(list_runs)
