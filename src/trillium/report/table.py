"""The rows of a report for the terminal, for a spreadsheet and for programs."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from trillium.report.measure import MAIN, Measure
from trillium.report.measures import BY_NAME, MEASURES
from trillium.report.quality import QUALITY
from trillium.report.reach import Goal
from trillium.report.summary import Row, remarks, shown

# In the order of the columns; where the terminal is narrow those with the highest number go first.
_COLUMNS = {
    "accuracy": 0,
    "f1": 9,
    "f1_micro": 0,
    "f1_macro": 6,
    "pearson": 0,
    "spearman": 6,
    "rmse": 3,
    "entity_f1": 0,
    "entity_precision": 6,
    "entity_recall": 6,
    "exact_match": 0,
    "chrf": 3,
    "bleu": 9,
    "rouge_l": 9,
    "perplexity": 0,
    "token_accuracy": 10,
    "reward_accuracy": 0,
    "reward_margin": 3,
    "loss": 8,
    **{f"clients_{name}": 5 for name in MAIN},
    **{f"clients_{name}_{what}": 7 for name in MAIN for what in ("min", "sd")},
    "clients_perplexity": 6,
    **{f"finetuned_{name}": 5 for name in MAIN},
    "bytes_up_per_client_round": 2,
    "bytes_down_per_client_round": 2,
    "bytes_per_client": 1,
    "flops_per_client": 1,
    "peak_bytes_client": 3,
    "wall_seconds": 4,
    "simulated_seconds": 3,
    "bytes_once_per_client": 7,
    "inverter_accuracy": 2,
    "inverter_rouge_l": 11,
    "nearest_accuracy": 11,
    "distance_correlation": 12,
    "label_norm_auc": 11,
    "epsilon": 1,
    "epsilon_token": 12,
    "epsilon_text": 6,
}
# Widest arm and widest state, below and from so many columns of terminal.
_NARROW, _FOLDED, _WIDE = 100, (18, 11), (28, 22)


def terminal_table(rows: Sequence[Row], width: int = 120, goals: Sequence[Goal] = ()) -> Table:
    """Return the table for a terminal so many columns wide.

    Measures that no arm has are left out, and the less important ones where there is no room; the
    caption names those. Deviations stand beside quality only, costs hardly have any.
    """
    names = columns_of(rows)
    cells = {name: [_cell(row, BY_NAME[name]) for row in rows] for name in names}
    shorts = {name: BY_NAME[name].short for name in names}
    ranks = dict(_COLUMNS)
    for goal in goals:
        names.append(goal.name)
        cells[goal.name] = [goal.shown(row.arm) for row in rows]
        shorts[goal.name], ranks[goal.name] = goal.short, 1
    arm_most, state_most = _WIDE if width >= _NARROW else _FOLDED
    arm_width = min(arm_most, max([3, *(cell_len(row.arm) for row in rows)]))
    states = [row.state for row in rows]
    show_state = any(state != "finished" for state in states)
    state_width = min(state_most, max(map(cell_len, states), default=5)) if show_state else -3
    widths = {
        name: max(cell_len(text) for text in [*_folded(shorts[name]), *cells[name]])
        for name in names
    }
    kept = list(names)

    def total() -> int:  # each column has a space on both sides and a rule before it
        return 1 + arm_width + 3 + sum(widths[name] + 3 for name in kept) + state_width + 3

    while total() > width and any(ranks[name] for name in kept):
        kept.remove(max(reversed(kept), key=ranks.__getitem__))
    hidden = [shorts[name].replace(" /", "/") for name in names if name not in kept]
    most = max((len(row.counted) for row in rows), default=1)
    caption = f"mean ± standard deviation over {most} seeds" if most > 1 else ""
    if hidden:
        caption += ("; " if caption else "") + f"in table.csv also: {', '.join(hidden)}"
    caption = "\n".join([*([caption] if caption else []), *remarks(rows)])
    table = Table(caption=Text(caption) if caption else None, caption_justify="left")
    table.add_column("Arm", max_width=arm_width, overflow="fold")
    for name in kept:
        title = "\n".join(_folded(shorts[name]))
        table.add_column(title, justify="right", min_width=widths[name])
    if show_state:
        table.add_column("State", max_width=state_width)
    for index, row in enumerate(rows):
        line = [Text(row.arm)]  # Text, because a label with [brackets] is not markup
        line += [Text(cells[name][index]) for name in kept]
        table.add_row(*line, *([Text(states[index])] if show_state else []))
    return table


def columns_of(rows: Sequence[Row]) -> list[str]:
    """Return the measures that a table shows, where there is room for all that some arm has."""
    return [name for name in _COLUMNS if any(name in row.values for row in rows)]


def _folded(title: str) -> list[str]:
    """Return the lines of a column's title."""
    return title.replace(" %", "\u00a0%").split(" ")


def _cell(row: Row, measure: Measure) -> str:
    stat = row.values.get(measure.name)
    return (
        shown(row, measure.name)
        if measure in QUALITY or not stat
        else measure.show(stat.mean, None)
    )


def to_csv(rows: Sequence[Row], goals: Sequence[Goal] = ()) -> str:
    """Return the rows as CSV: plain numbers, every measure always there, empty where unknown.

    Units stand in the names of the columns; accuracy, F1 and the like are fractions from 0 to 1.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    header = ["arm", "framework", "shipped", "state", "num_runs", "num_counted", "seeds", "failed"]
    for measure in MEASURES:
        header += [measure.name, f"{measure.name}_sd"]
    header += [goal.name for goal in goals]
    writer.writerow(header)
    for row in rows:
        seeds = " ".join(str(run.seed) for run in row.counted if run.seed is not None)
        line: list[object] = [row.arm, row.framework, row.shipped, row.state]
        failed = "; ".join(f"seed {seed}: {reason}" for seed, reason in row.reasons.items())
        line += [len(row.runs), len(row.counted), seeds, failed]
        for measure in MEASURES:
            stat = row.values.get(measure.name)
            line += ["", ""] if stat is None else [stat.mean, "" if stat.sd is None else stat.sd]
        spent = [goal.reached.get(row.arm) for goal in goals]
        writer.writerow([*line, *("" if found is None else found.bytes for found in spent)])
    return text.getvalue()


def to_dict(rows: Sequence[Row], goals: Sequence[Goal] = ()) -> dict[str, Any]:
    """Return the rows as plain values for JSON; a number that is not finite becomes null."""
    return {
        "arms": [
            {
                "arm": row.arm,
                "framework": row.framework,
                "shipped": row.shipped,
                "state": row.state,
                "num_runs": len(row.runs),
                "num_counted": len(row.counted),
                "seeds": [run.seed for run in row.counted],
                "failed": row.reasons,
                "measures": {
                    name: {"mean": _finite(stat.mean), "sd": _finite(stat.sd), "num": stat.num}
                    for name, stat in row.values.items()
                },
                "reached": {
                    goal.name: goal.reached[row.arm]._asdict()
                    for goal in goals
                    if row.arm in goal.reached
                },
            }
            for row in rows
        ]
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
