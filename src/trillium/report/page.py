"""The report as one HTML page that needs nothing beside it: plots are in it, styles are in it.

All text of runs (labels, paths, reasons, options) goes through Jinja's autoescape.
"""

from __future__ import annotations

import base64
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from trillium.report.config_view import differing_paths, marked_yaml, value_at
from trillium.report.human import duration
from trillium.report.measure import Measure
from trillium.report.measures import MEASURES, show_bytes
from trillium.report.planned import held
from trillium.report.plots import Plot
from trillium.report.progress import missing_clients, round_table
from trillium.report.reach import Goal
from trillium.report.read import Run, number
from trillium.report.style import arm_styles
from trillium.report.summary import Row, remarks, shown

_TEMPLATE = Path(__file__).with_name("page.html")


def render_page(
    name: str,
    rows: Sequence[Row],
    plots: Sequence[Plot],
    goals: Sequence[Goal] = (),
    about: str = "",
) -> str:
    """Return the HTML page of a report."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATE.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    runs = [run for row in rows for run in row.runs]
    measures = [measure for measure in MEASURES if any(_tells(row, measure) for row in rows)]
    styles = arm_styles([row.arm for row in rows])
    return environment.get_template(_TEMPLATE.name).render(
        name=name,
        rows=rows,
        colours={arm: style["color"] for arm, style in styles.items()},
        about=about.strip().split("\n\n") if about.strip() else [],
        remarks=remarks(rows),
        results=[
            *((measure, [shown(row, measure.name) for row in rows]) for measure in measures),
            *((goal, [goal.shown(row.arm) for row in rows]) for goal in goals),
        ],
        num_seeds=max(len(row.counted) for row in rows),
        plots=[(plot, base64.b64encode(plot.png).decode("ascii")) for plot in plots],
        rounds=[round_table(row) for row in rows],
        missing=missing_clients(rows),
        failed=[run for run in runs if run.state != "finished"],
        notes=[(run, note) for run in runs for note in run.notes],
        data=_data(runs),
        once=_once(rows),
        planned=[(row.arm, lines) for row in rows if (lines := held(row.counted[0]))],
        configs=_configs(rows),
        differences=_differences(rows),
        runs=[_run(run) for run in runs],
        commands=_commands(name, runs),
        versions=_versions(runs),
    )


def _tells(row: Row, measure: Measure) -> bool:
    """Whether a measure says something: what crossed the wire once, mostly nothing, may be 0."""
    stat = row.values.get(measure.name)
    return stat is not None and (stat.mean != 0 or "_once_" not in measure.name)


def _run(run: Run) -> dict[str, Any]:
    seconds = number(run.status.get("seconds"))
    return {
        "folder": run.folder.name,
        "arm": run.arm,
        "seed": run.seed,
        "state": run.state,
        "started": str(run.status.get("started") or "")[:19],
        "seconds": "" if seconds is None else duration(seconds),
        "device": run.env.get("device") or "",
        "python": run.env.get("python") or "",
        "git_sha": str(run.env.get("git_sha") or "")[:12],
    }


def _data(runs: Sequence[Run]) -> dict[str, Any] | None:
    """Sizes of the data of the run whose partition is drawn, and whether all runs share it."""
    known = [run for run in runs if run.data.get("clients")]
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


def _once(rows: Sequence[Row]) -> list[tuple[str, list[str]]]:
    """Once-only transfers: a line per thing, a column per arm; of the first counted run."""
    things = dict.fromkeys(thing for row in rows for thing in row.counted[0].once)
    return [
        (
            thing,
            [
                show_bytes(row.counted[0].once[thing]) if thing in row.counted[0].once else "–"
                for row in rows
            ],
        )
        for thing in things
    ]


def _differences(rows: Sequence[Row]) -> list[tuple[str, list[str]]]:
    configs = [row.counted[0].config for row in rows]
    return [
        (".".join(path), [value_at(config, path) for config in configs])
        for path in differing_paths(configs)
    ]


def _configs(rows: Sequence[Row]) -> list[tuple[str, list[tuple[str, bool]]]]:
    configs = [row.counted[0].config for row in rows]
    differing = differing_paths(configs)
    return [(row.arm, marked_yaml(row.counted[0].config, differing)) for row in rows]


def _commands(name: str, runs: Sequence[Run]) -> dict[str, list[str]]:
    """The commands that were given, and those that run single runs again."""
    given: dict[str, None] = {}
    for run in runs:
        argv = run.env.get("argv")
        if isinstance(argv, list) and argv:
            program = Path(str(argv[0])).name
            words = ["trillium" if program == "__main__.py" else program, *map(str, argv[1:])]
            given[shlex.join(words)] = None
    folders = [name] if len(runs) == 1 else [f"{name}/{run.folder.name}" for run in runs]
    again = [shlex.join(["trillium", "run", f"{folder}/config.yaml"]) for folder in folders]
    return {"given": list(given), "again": again}


def _versions(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Packages and the version (or versions, where runs differ) that ran."""
    found: dict[str, dict[str, None]] = {}
    for run in runs:
        versions = run.env.get("versions")
        for package, version in (versions if isinstance(versions, dict) else {}).items():
            found.setdefault(str(package), {})[str(version)] = None
    return [(package, ", ".join(versions)) for package, versions in sorted(found.items())]
