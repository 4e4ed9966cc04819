"""Print what a run has brought."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console


def show(folder: Path, as_json: bool) -> None:
    """Write the report of a folder and print its table."""
    from trillium.report.read import read_runs
    from trillium.report.summary import summarise
    from trillium.report.table import terminal_table, to_dict
    from trillium.report.write import write_report

    page = write_report(folder)
    rows = summarise(read_runs(folder))
    if as_json:
        print(json.dumps({"folder": str(folder), "report": str(page), **to_dict(rows)}, indent=1))
        return
    console = Console()
    console.print(terminal_table(rows, console.width))
    console.print(f"\nReport: {page}", highlight=False, soft_wrap=True)
