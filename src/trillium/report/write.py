"""Writes a report beside the runs it is of: table.csv, table.md, plots/*.png and report.html."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trillium.report.markdown import markdown
from trillium.report.page import render_page
from trillium.report.plots import PLOT_NAMES, draw_plots
from trillium.report.reach import Goal, goals
from trillium.report.read import read_about, read_runs
from trillium.report.summary import Row, summarise
from trillium.report.table import to_csv
from trillium.report.times import clock_of, places_of


@dataclass(frozen=True)
class Report:
    """What was written.

    Attributes:
        page: where the page lies.
        rows: the arms.
        goals: accuracies that they are held against.
        spent: what all runs together have spent of privacy, in words.
    """

    page: Path
    rows: Sequence[Row]
    goals: Sequence[Goal]
    spent: str = ""


def make_report(folder: Path, reach: Sequence[float] = (), spent: str = "") -> Report:
    """Write the report of a run folder or a compare folder.

    Each file is replaced whole, so a reader never sees half of one; plots of an earlier report that
    are no longer drawn are removed.

    Args:
        reach: accuracies to tell the bytes to, in place of those of the recipe.
        spent: what all runs together have spent of privacy, in words.

    Raises:
        UserError: the folder is neither a run nor a comparison.
    """
    rows, told = summarise(read_runs(folder)), read_about(folder)
    held = goals(rows, reach or told.get("reach") or ())
    name, about = folder.resolve().name, str(told.get("about") or "")
    clock = clock_of(rows, told.get("plan") or places_of(rows))
    plots = draw_plots(rows, clock=clock)
    (folder / "plots").mkdir(exist_ok=True)
    drawn = {plot.name: plot.png for plot in plots}
    for plot_name in PLOT_NAMES:
        path = folder / "plots" / f"{plot_name}.png"
        if plot_name in drawn:
            _replace(path, drawn[plot_name])
        else:
            path.unlink(missing_ok=True)
    page = folder / "report.html"
    for path, text in (
        (folder / "table.csv", to_csv(rows, held)),
        (folder / "table.md", markdown(name, rows, held, told, spent)),
        (page, render_page(folder, rows, plots, clock, held, about, spent)),
    ):
        _replace(path, text.encode("utf-8", "replace"))
    return Report(page, rows, held, spent)


def write_report(folder: Path) -> Path:
    """Write the report of a folder and return the path of its page."""
    return make_report(folder).page


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
