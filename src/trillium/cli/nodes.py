"""`trillium nodes`: the nodes of a deployment, and which of them are there."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from trillium.cli.words import AsJson
from trillium.errors import UserError


def nodes(
    folder: Annotated[
        Path, typer.Argument(metavar="[FOLDER]", help="A deployment, or one of its runs.")
    ] = Path(),
    as_json: AsJson = False,
) -> None:
    """List the nodes of the newest run of a deployment: state, last sign of life, round."""
    from trillium.files import NODES, is_run_by_a_process

    found = sorted(folder.rglob(NODES), key=lambda path: path.stat().st_mtime)
    if not found:
        raise UserError(
            str(folder),
            "no run of a deployment is below it",
            "Name the folder that `trillium deploy` wrote, after a run has begun",
        )
    path = found[-1]
    board = json.loads(path.read_text(encoding="utf-8"))
    is_on = is_run_by_a_process(path.parent)
    lines = [
        {"name": name, **seen, "state": seen["state"] if is_on else "the run is over"}
        for name, seen in board["nodes"].items()
    ]
    if as_json:
        print(json.dumps({**board, "run": path.parent.name, "nodes": lines}, indent=1))
        return
    print(f"{path.parent.name}: round {max(board['round'], 0)} of {board['rounds']}")
    rows = [("node", "state", "last seen", "round", "")]
    for line in lines:
        when, number = line["last_seen"], line["round"]
        shown = "never" if when is None else f"{datetime.fromtimestamp(when):%Y-%m-%d %H:%M:%S}"
        last = "-" if number is None else str(number)
        rows.append((line["name"], line["state"], shown, last, line["why"]))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        print("  ".join([*cells, row[4]]).rstrip())
