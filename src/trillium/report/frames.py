"""Runs as tables of pandas: the measures of each arm, every evaluation, and every message."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trillium.report.measures import BY_NAME, MEASURES
from trillium.report.reach import Goal
from trillium.report.read import Run, read_lines
from trillium.report.summary import Row, shown
from trillium.report.table import columns_of

if TYPE_CHECKING:
    from pandas import DataFrame


def measures_frame(rows: Sequence[Row], goals: Sequence[Goal] = ()) -> DataFrame:
    """Return the measures that some arm has: a row for each arm, numbers as in `table.csv`.

    Beside the mean of a measure over several seeds stands its standard deviation, `<name>_sd`.
    """
    import pandas as pd

    several = any(len(row.counted) > 1 for row in rows)
    lines = []
    for row in rows:
        line: dict[str, Any] = {
            "framework": row.framework, "state": row.state, "num_counted": len(row.counted)
        }  # fmt: skip
        for measure in MEASURES:
            if not any(measure.name in other.values for other in rows):
                continue
            stat = row.values.get(measure.name)
            line[measure.name] = math.nan if stat is None else stat.mean
            if several:
                line[f"{measure.name}_sd"] = stat.sd if stat and stat.sd is not None else math.nan
        for goal in goals:
            found = goal.reached.get(row.arm)
            line[goal.name] = math.nan if found is None else found.bytes
        lines.append(line)
    return pd.DataFrame(lines, index=pd.Index([row.arm for row in rows], name="arm"))


def shown_frame(rows: Sequence[Row], goals: Sequence[Goal] = ()) -> DataFrame:
    """Return what the terminal shows, as texts for people."""
    import pandas as pd

    found = {BY_NAME[name].short: [shown(row, name) for row in rows] for name in columns_of(rows)}
    for goal in goals:
        found[goal.short] = [goal.shown(row.arm) for row in rows]
    if any(row.state != "finished" for row in rows):
        found["State"] = [row.state for row in rows]
    return pd.DataFrame(found, index=pd.Index([row.arm for row in rows], name="Arm"))


def evaluations_frame(runs: Iterable[Run], *, named: bool) -> DataFrame:
    """Return all evaluations, one a row; nested measures by their path, `clients.client-0.accuracy`.

    Args:
        named: whether arm and seed stand in front.
    """
    return _frame(runs, _evaluations, named)


def ledger_frame(runs: Iterable[Run], *, named: bool) -> DataFrame:
    """Return the ledgers, one message a row; bytes of one kind of tensor are `bytes_<kind>`.

    Args:
        named: whether arm and seed stand in front.
    """
    frame = _frame(runs, _messages, named)
    kinds = [name for name in frame.columns if name.startswith("bytes_") and name != "bytes_raw"]
    return frame.fillna(dict.fromkeys(kinds, 0)).astype(dict.fromkeys(kinds, int))


def _frame(runs: Iterable[Run], of: Any, named: bool) -> DataFrame:
    import pandas as pd

    lines = [
        {**({"arm": run.arm, "seed": run.seed} if named else {}), **line}
        for run in runs
        for line in of(run)
    ]
    return pd.DataFrame(lines)


def _evaluations(run: Run) -> Iterator[dict[str, Any]]:
    for line in run.evaluations:
        yield {**dict(_flat(line)), "missing": line.get("missing", {})}


def _flat(tree: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    """Yield what stands in a tree by its path; who is missing, and why, is left out."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{place}{key}.") if f"{place}{key}" != "missing" else ()
        else:
            yield f"{place}{key}", value


def _messages(run: Run) -> Iterator[dict[str, Any]]:
    path: Path = run.folder / "wire.jsonl"
    for line in read_lines(path, []):
        kinds = line.pop("kinds", {})
        yield {**line, **{f"bytes_{kind}": number for kind, number in kinds.items()}}
