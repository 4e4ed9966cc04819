"""`trillium node`: what a data owner looks at beside a node."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Annotated

import typer

from trillium.cli.deploy import check_installed
from trillium.cli.words import AsJson
from trillium.errors import UserError

State = Annotated[
    Path, typer.Argument(metavar="[STATE]", help="The folder that node.toml calls `state`.")
]

app = typer.Typer(
    help="Look at what a node was asked and what has left it, and clear up after it.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command()
def log(
    state: State = Path("state"),
    verify: Annotated[
        bool, typer.Option("--verify", help="Check that no line was changed, or is missing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show the log of a node: each ask, and what left because of it."""
    check_installed()
    from trillium.engines.journal import read
    from trillium.engines.journal import verify as check

    if verify:
        number, found = check(state)
        print(f"{number} lines, whole. The last one has the hash {found}")
        return
    for line in read(state):
        if as_json:
            print(json.dumps(line))
            continue
        kinds = ", ".join(f"{kind} {size}" for kind, size in sorted(line.get("kinds", {}).items()))
        what = f"round {line['round']}: {line['verb']}" if "round" in line else line["asked"]
        left = f"{line['bytes_up']} bytes left ({kinds})" if line["bytes_up"] else "nothing left"
        refused = f", refused: {line['refused']}" if line["refused"] else ""
        print(f"{line['number']} {line['time'][:19]} {line['run']}: {what}: {left}{refused}")


@app.command()
def clean(
    state: State = Path("state"),
    days: Annotated[
        float, typer.Option(min=0, help="How old what is removed must be, in days.")
    ] = 90.0,
) -> None:
    """Remove what is kept of old runs, and old lines of the log."""
    check_installed()
    from trillium.engines.journal import LOG, forget
    from trillium.engines.node import RUNS

    if not state.is_dir():
        raise UserError(
            str(state), "there is no such folder", "Name the folder that node.toml calls `state`"
        )
    before = time.time() - days * 86400
    old = [
        run
        for run in sorted((state / RUNS).glob("*"))
        if max(path.stat().st_mtime for path in (run, *run.rglob("*"))) < before
    ]
    for run in old:
        shutil.rmtree(run)
        print(f"{run} removed")
    num_lines = forget(state, days) if (state / LOG).exists() else 0
    print(f"{len(old)} runs and {num_lines} lines of the log removed")
