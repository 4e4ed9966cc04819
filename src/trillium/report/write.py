"""Writes a report beside the runs it is of: table.csv, plots/*.png and report.html."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from trillium.report.page import render_page
from trillium.report.plots import PLOT_NAMES, draw_plots
from trillium.report.read import read_runs
from trillium.report.summary import summarise
from trillium.report.table import to_csv


def write_report(folder: Path) -> Path:
    """Write the report of a run folder or a compare folder and return the path of its page.

    Each file is replaced whole, so a reader never sees half of one; plots of an earlier report that
    are no longer drawn are removed.

    Raises:
        UserError: the folder is neither a run nor a comparison.
    """
    rows = summarise(read_runs(folder))
    plots = draw_plots(rows)
    (folder / "plots").mkdir(exist_ok=True)
    drawn = {plot.name: plot.png for plot in plots}
    for name in PLOT_NAMES:
        path = folder / "plots" / f"{name}.png"
        if name in drawn:
            _replace(path, drawn[name])
        else:
            path.unlink(missing_ok=True)
    _replace(folder / "table.csv", to_csv(rows).encode("utf-8", "replace"))
    page = folder / "report.html"
    _replace(page, render_page(folder.resolve().name, rows, plots).encode("utf-8", "replace"))
    return page


def _replace(path: Path, content: bytes) -> None:
    """Write a file beside its place, then move it there in one step."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    written = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        written.chmod(0o644)  # mkstemp makes it private, a report is to be shared
        written.replace(path)
    except BaseException:
        written.unlink(missing_ok=True)
        raise
