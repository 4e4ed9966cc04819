"""The report as one HTML page that needs nothing beside it: data, styles and scripts are in it.

All text of runs (labels, paths, reasons, options) goes through Jinja's autoescape, or as JSON into a
block that is not executed; the page's own scripts are named by their hash, and no other may run.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trillium.report.interval import MEANING, interval
from trillium.report.measures import MEASURES
from trillium.report.page import sections
from trillium.report.page.changes import changed, configs
from trillium.report.page.charts import charts
from trillium.report.page.held_out import classes, decoding, texts
from trillium.report.page.html import image, render
from trillium.report.page.results import results, timed
from trillium.report.planned import held
from trillium.report.plots import Plot
from trillium.report.progress import missing_clients, round_table
from trillium.report.reach import Goal
from trillium.report.style import arm_colours
from trillium.report.summary import Row, families, remarks, shown
from trillium.report.times import Clock
from trillium.report.words import outcome, title

PICTURES = ("leakage", "partition")  # that the page shows as they are; it draws the others itself


def render_page(
    folder: Path,
    rows: Sequence[Row],
    plots: Sequence[Plot],
    clock: Clock,
    goals: Sequence[Goal] = (),
    about: str = "",
    spent: str = "",
) -> str:
    """Return the HTML page of a report."""
    runs = [run for row in rows for run in row.runs]
    measures = [m for m in MEASURES if any(sections.tells(row, m) for row in rows)]
    columns, lines = results(rows, goals, timed(rows, clock))
    bars, kinds = sections.bars(rows)
    data = sections.data_of(runs)
    curves = charts(rows, {place: clock.spent(place) for place in clock.places})
    return render(
        "report.html.j2",
        scripts=["vendor/uPlot.iife.min.js", "templates/charts.js", "templates/page.js"],
        styles=["vendor/uPlot.min.css", "templates/page.css"],
        name=folder.resolve().name,
        title=title(rows) or folder.resolve().name,
        outcome=outcome(rows),
        rows=rows,
        colours=arm_colours(families(rows)),
        places={row.arm: place for place, row in enumerate(rows)},
        about=about.strip().split("\n\n") if about.strip() else [],
        remarks=[*remarks(rows), *([spent] if spent else [])],
        columns=columns,
        lines=lines,
        meaning=MEANING if any(interval(r, m.name) for r in rows for m in measures) else "",
        results=[
            *((measure, [shown(row, measure.name) for row in rows]) for measure in measures),
            *((goal, [goal.shown(row.arm) for row in rows]) for goal in goals),
        ],
        num_seeds=max(len(row.counted) for row in rows),
        charts=curves,
        clock={place: clock.described(place) for place in clock.places},
        bars=bars,
        kinds=kinds,
        plots=[(plot, image(plot.png)) for plot in plots if plot.name in PICTURES],
        fallback=[(plot, image(plot.png)) for plot in plots if plot.name == "rounds"],
        rounds=[round_table(row) for row in rows],
        missing=missing_clients(rows),
        failed=[run for run in runs if run.state != "finished"],
        notes=[(run, note) for run in runs for note in run.notes],
        data=data,
        once=sections.once(rows),
        planned=[(row.arm, found) for row in rows if (found := held(row.counted[0]))],
        classes=classes(rows),
        texts=texts(rows),
        decoding=decoding(rows),
        changes=changed(rows),
        configs=configs(rows),
        runs=[sections.told_of(run) for run in runs],
        commands=sections.commands(folder, runs),
        versions=sections.versions(runs),
    )
