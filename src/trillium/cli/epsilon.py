"""`trillium epsilon`: what several runs on the same clients have spent together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from trillium.cli.words import AsJson


def epsilon(
    folders: Annotated[list[Path], typer.Argument(metavar="RUNS...", help="Folders of runs.")],
    delta: Annotated[
        float | None, typer.Option(help="Of the guarantee; the least of the runs by default.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what runs on the same clients have spent together: seeds, arms and trials add up."""
    from trillium.experiment.spent import said, together

    found: dict[str, Any] = together(folders, delta)
    if as_json:
        print(json.dumps(found, indent=1))
        return
    for name, own in found["runs"].items():
        print(f"{name}: {said(own)}")
    if len(found["runs"]) > 1:
        print(f"together: {said(found)}")


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(epsilon)
