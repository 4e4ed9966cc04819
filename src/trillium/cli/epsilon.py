"""`trillium epsilon`: what several runs on the same clients have spent together."""

from __future__ import annotations

import json
import math
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
    from trillium.experiment.spent import together

    found: dict[str, Any] = together(folders, delta)
    if as_json:
        print(json.dumps(found, indent=1))
        return
    for name, own in found["runs"].items():
        print(f"{name}: {_said(own)}")
    if len(found["runs"]) > 1:
        print(f"together: {_said(found)}")


def _said(found: dict[str, Any]) -> str:
    spent = found["epsilon"]
    if spent is None or not math.isfinite(spent):
        return f"no ε ({found['uncovered']})"
    return f"ε = {spent:.4g} at δ = {found['delta']:g} for one {found['unit']} more or less"


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(epsilon)
