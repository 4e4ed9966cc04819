"""The rows of a report as a page in Markdown, to be kept in a repository or a paper's appendix."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trillium.report import human
from trillium.report.measure import MAIN, QUALITY
from trillium.report.measures import BY_NAME
from trillium.report.reach import Goal, quality
from trillium.report.read import Run
from trillium.report.summary import Row, remarks, shown

COLUMNS = (
    *QUALITY,
    *(f"clients_{name}{what}" for name in MAIN for what in ("", "_min", "_sd")),
    "clients_perplexity",
    *(f"finetuned_{name}" for name in MAIN),
    "bytes_per_client",
    "flops_per_client",
    "peak_bytes_client",
    "inverter_accuracy",
    "nearest_accuracy",
    "distance_correlation",
)


def markdown(
    name: str,
    rows: Sequence[Row],
    goals: Sequence[Goal] = (),
    told: Mapping[str, Any] | None = None,
    spent: str = "",
) -> str:
    """Return the page.

    Args:
        name: its title.
        told: what the recipe says (`about`), and how settings were chosen (`tuning`).
        spent: what all runs together have spent of privacy, in words.
    """
    told = told or {}
    measures = [BY_NAME[name] for name in COLUMNS if any(name in row.values for row in rows)]
    has_best = any(quality(row).y for row in rows)
    titles = ["Arm", *(["Best accuracy"] if has_best else []), *(m.title for m in measures)]
    titles += [*(goal.title for goal in goals), "Rounds", "Seeds"]
    lines = []
    for row in rows:
        cells = [row.arm, *([_best(row)] if has_best else [])]
        cells += [shown(row, measure.name) for measure in measures]
        cells += [goal.shown(row.arm) for goal in goals]
        cells += [_rounds(row), _seeds(row)]
        lines.append(cells)
    about = str(told.get("about") or "").strip()
    text = [f"# {name}", "", *([about, ""] if about else []), *table(titles, lines), ""]
    notes = [*remarks(rows), *([spent] if spent else [])]
    text += [line for note in notes for line in (note, "")]
    text += _tuned(told.get("tuning"))
    explained = [(m.title, m.definition) for m in measures]
    explained += [(goal.title, goal.definition) for goal in goals]
    text += ["Definitions:", "", *(f"- {title}: {means}" for title, means in explained), ""]
    text += ["Made with:", "", *_made(run for row in rows for run in row.counted)]
    return "\n".join(text) + "\n"


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table."""
    rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in (titles, ["---"] * len(titles), *rows)]


def _best(row: Row) -> str:
    found = quality(row)
    if not found.y:
        return human.NONE
    top = max(found.y, key=lambda stat: stat.mean)
    return f"{human.percent(top.mean, top.sd)} (round {found.rounds[found.y.index(top)]})"


def _rounds(row: Row) -> str:
    """Return the last round that was measured."""
    known = [run.evaluations[-1]["round"] for run in row.counted if run.evaluations]
    return str(max(known)) if known else human.NONE


def _seeds(row: Row) -> str:
    seeds = ", ".join(str(run.seed) for run in row.counted if run.seed is not None)
    return seeds if row.state == "finished" else f"{seeds} ({row.state})"


def _tuned(tuning: Mapping[str, Any] | None) -> list[str]:
    """Return how settings were chosen."""
    if not tuning or not tuning.get("chosen"):
        return []
    lines = [f"Chosen by runs with seed {tuning['seed']}, none of which is in the table:", ""]
    for arm, settings in tuning["chosen"].items():
        lines.append(f"- {arm}: {', '.join(f'`{word}`' for word in human.as_words(settings))}")
    return [*lines, ""]


def _made(runs: Iterable[Run]) -> list[str]:
    """Return commands, commits and versions, and how many runs were made with each."""
    made: dict[str, int] = {}
    for run in runs:
        argv = [str(word) for word in run.env.get("argv") or []]
        program = Path(argv[0]).name if argv else ""
        words = ["trillium" if program == "__main__.py" else program, *argv[1:]]
        versions = run.env.get("versions") or {}
        libraries = [
            f"{n} {versions[n]}" for n in ("torch", "transformers", "peft") if n in versions
        ]
        commit = str(run.env.get("git_sha") or "unknown")[:10]
        how = f"`{shlex.join(words)}`" if argv else "an unknown command"
        how += f" ({', '.join([str(run.env.get('device') or '?'), *libraries])}; commit {commit})"
        made[how] = made.get(how, 0) + 1
    return [f"- {how}: {count} run{'s' if count > 1 else ''}" for how, count in made.items()]
