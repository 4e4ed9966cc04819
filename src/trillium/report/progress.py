"""How an arm went, round by round, and which clients did not answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trillium.report import human
from trillium.report.costs import bytes_per_client, flops_per_client
from trillium.report.measure import Measure
from trillium.report.measures import BY_NAME
from trillium.report.quality import QUALITY
from trillium.report.read import number
from trillium.report.summary import Row, Stat


@dataclass(frozen=True)
class RoundTable:
    """The evaluations of an arm, one line a round, ready to be shown."""

    arm: str
    header: list[str]
    lines: list[list[str]]


@dataclass(frozen=True)
class Missing:
    """A client that did not answer for one reason, in which rounds of which seed."""

    arm: str
    seed: int | None
    client: str
    reason: str
    rounds: list[int]


def round_table(row: Row) -> RoundTable:
    """Return the table of an arm; every value is the mean ± sd over the seeds evaluated there."""
    names = [
        measure for measure in QUALITY if not measure.name.startswith(("clients_", "finetuned_"))
    ]
    lines_of = [(run, {line["round"]: line for line in run.evaluations}) for run in row.counted]
    shown = [
        measure
        for measure in names
        if any(number(e.get(measure.name)) is not None for run in row.counted
               for e in run.evaluations)
    ]  # fmt: skip
    header = ["Round", *(measure.title for measure in shown)]
    header += ["Answered", "Bytes per client, so far", "Client compute, so far", "Wall time"]
    table = []
    for index in sorted({index for _, lines in lines_of for index in lines}):
        here = [(run, lines[index]) for run, lines in lines_of if index in lines]
        asked = [number(line.get("asked")) for _, line in here]
        replied = [number(line.get("replied")) for _, line in here]
        cells = [
            _shown(measure, Stat.of(number(line.get(measure.name)) for _, line in here))
            for measure in shown
        ]
        table.append(
            [
                str(index),
                *cells,
                f"{sum(x or 0 for x in replied):g} of {sum(x or 0 for x in asked):g}"
                if any(asked)
                else human.NONE,
                _shown(BY_NAME["bytes_per_client"],
                       Stat.of(bytes_per_client(run, index) for run, _ in here)),
                _shown(BY_NAME["flops_per_client"],
                       Stat.of(flops_per_client(run, index) for run, _ in here)),
                _shown(BY_NAME["wall_seconds"],
                       Stat.of(number(line.get("seconds")) for _, line in here)),
            ]
        )  # fmt: skip
    return RoundTable(row.arm, header, table)


def missing_clients(rows: Sequence[Row]) -> list[Missing]:
    """Return who did not answer and why, of all runs, counted or not."""
    found: dict[tuple[str, int | None, str, str], list[int]] = {}
    for row in rows:
        for run in row.runs:
            for line in run.evaluations:
                missing = line.get("missing")
                for client, reason in (missing if isinstance(missing, dict) else {}).items():
                    key = (row.arm, run.seed, str(client), str(reason))
                    found.setdefault(key, []).append(line["round"])
    return [Missing(*key, rounds) for key, rounds in found.items()]


def _shown(measure: Measure, stat: Stat | None) -> str:
    return human.NONE if stat is None else measure.show(stat.mean, stat.sd)
