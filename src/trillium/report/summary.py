"""Runs grouped into arms, and each measure as mean ± standard deviation over the seeds."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trillium.report import human
from trillium.report.measures import BY_NAME, MEASURES
from trillium.report.privacy import guarantee, hidden
from trillium.report.read import Run

_BASELINES = ("zero_shot", "local_only", "centralised")
_MOST = 400  # letters of a reason in a table


@dataclass(frozen=True)
class Stat:
    """Mean and sample standard deviation (n - 1) of `num` values; no deviation of one value."""

    mean: float
    sd: float | None
    num: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Stat | None:
        """Return the statistics of the values that are known, None where none is."""
        known = [value for value in values if value is not None]
        if not known:
            return None
        if not all(map(math.isfinite, known)):  # a diverged seed makes a diverged mean
            return cls(sum(known) / len(known), math.nan if len(known) > 1 else None, len(known))
        sd = statistics.stdev(known) if len(known) > 1 else None
        return cls(statistics.fmean(known), sd, len(known))


@dataclass(frozen=True)
class Row:
    """One arm: its runs, those that count, and the statistics of every measure that it has.

    Finished runs count. Where none is finished all count, as far as they came, and `state` says so.
    """

    arm: str
    runs: tuple[Run, ...]
    counted: tuple[Run, ...]
    values: Mapping[str, Stat]

    @property
    def state(self) -> str:
        """`finished`, `failed`, `stopped`, `running`, or how many of each: `2 finished, 1 failed`."""
        states = Counter(run.state for run in self.runs)
        if len(states) == 1:
            return next(iter(states))
        order = sorted(states, key=lambda state: (state != "finished", state))
        return ", ".join(f"{states[state]} {state}" for state in order)

    @property
    def reasons(self) -> dict[str, str]:
        """Why runs have failed, by seed."""
        failed = [run for run in self.runs if run.state == "failed"]
        return {str(run.seed): _first_line(run.status.get("error")) for run in failed}

    @property
    def is_finished(self) -> bool:
        """Whether the figures are of finished runs."""
        return any(run.state == "finished" for run in self.runs)

    @property
    def framework(self) -> str:
        """Name of the framework."""
        return self.runs[0].framework

    @property
    def is_baseline(self) -> bool:
        """Whether it is what the frameworks are held against, and no federation itself."""
        return self.framework.replace("-", "_") in _BASELINES

    @property
    def shipped(self) -> str:
        """What the accuracy is of: the server's model, or the mean of the clients' models."""
        found = [run.evaluations[-1].get("shipped") for run in self.runs if run.evaluations]
        return str(next((text for text in found if text), ""))


def summarise(runs: Iterable[Run]) -> list[Row]:
    """Return one row per arm: frameworks before baselines, else in the order of their first runs."""
    arms: dict[str, list[Run]] = {}
    for run in runs:
        arms.setdefault(run.arm, []).append(run)
    rows = [_row(arm, group) for arm, group in arms.items()]
    return sorted(rows, key=lambda row: row.is_baseline)


def families(rows: Iterable[Row]) -> dict[str, str]:
    """Return the framework of each arm, by which it is coloured; a baseline has none."""
    return {row.arm: "" if row.is_baseline else row.framework for row in rows}


def remarks(rows: Iterable[Row]) -> list[str]:
    """Return what must be known of a figure to read it right."""
    rows = [*rows]
    redrawn = [
        run
        for row in rows
        for run in row.counted
        if len(row.counted) > 1 and run.config.get("data", {}).get("split_seed", 0) is None
    ]
    mixed = "Each seed has test rows of its own (data.split_seed=null): deviations are of both."
    failed = [
        f"{row.arm}, seed {seed}, failed: {reason}"
        for row in rows
        for seed, reason in row.reasons.items()
    ]
    chosen = [
        f"{row.arm}: the figures are those of the best round (evaluation.keep=best), which was chosen "
        "by the rows that it is measured on."
        for row in rows
        if any(_evaluation(run, "keep") == "best" for run in row.counted)
    ]
    apart = [
        f"{row.arm}: the clients have measured the figures on their own held-out rows, each as many as "
        "it has (evaluation.where=clients)."
        for row in rows
        if any(_evaluation(run, "where") == "clients" for run in row.counted)
    ]
    skipped = [
        f"{row.arm}, seed {run.seed}: skipped, as too few clients replied: round "
        f"{', '.join(map(str, found))}."
        for row in rows
        for run in row.counted
        if (found := [line["round"] for line in run.evaluations if line.get("skipped")])
    ]
    lost = [
        f"{row.arm}, seed {run.seed}: {name} has lost {size} bytes, so its figures are too low."
        for row in rows
        for run in row.counted
        for name, size in run.status.get("lost_bytes", {}).items()
    ]
    ended = [
        f"{row.arm}, seed {run.seed}: ended at round {run.evaluations[-1]['round']} of "
        f"{run.config['rounds']}, as {_evaluation(run, 'patience')} rounds had brought no gain."
        for row in rows
        for run in row.counted
        if run.ended_early
    ]
    guesses = [
        f"{row.arm}: the task head is new and drawn at random, so this is what guessing gives; it is "
        "no baseline to beat."
        for row in rows
        if guesses_only(row)
    ]
    private = [
        f"{row.arm}: {said}"
        for row in rows
        for said in dict.fromkeys(
            said
            for run in row.counted
            if run.evaluations
            for said in (guarantee(run.evaluations[-1]), hidden(run.config))
        )
        if said
    ]
    found = failed + apart + chosen + ended + skipped + lost + private
    return found + [mixed] * bool(redrawn) + _of_data(rows) + guesses


def guesses_only(row: Row) -> bool:
    """Whether an arm is a task head that was drawn at random, and no baseline to beat."""
    return (
        row.framework == "zero_shot"
        and _name(row, "task") not in ("causal_lm", "preference")
        and _name(row, "head") == "random"
        and not row.counted[0].data.get("own_head")
    )


def _of_data(rows: Sequence[Row]) -> list[str]:
    """Return what the data of the runs came to: each thing once, with its arms if not all have it."""
    found: dict[str, list[str]] = {}
    for row in rows:
        for text in said_of(row.counted[0].data, row.counted[0].config.get("data") or {}):
            found.setdefault(text, []).append(row.arm)
    return [
        text if len(arms) == len(rows) else f"{', '.join(arms)}: {text}"
        for text, arms in found.items()
    ]


def said_of(data: Mapping[str, Any], asked: Mapping[str, Any]) -> Iterator[str]:
    """Yield what the data of a run came to: what was cut, and what was left out.

    Args:
        data: as in `data.json`.
        asked: the settings of the data.
    """
    clients, test = data.get("clients") or {}, data.get("test") or {}
    for name, whose in (
        ("truncated", "were cut"),
        ("left_out", "were left out, with nothing to learn"),
    ):
        own = {c: number for c, of in clients.items() if (number := of.get(name, 0))}
        if own:
            most = sorted(own, key=own.__getitem__, reverse=True)[:3]
            by = ", ".join(f"{own[c]} of {_texts(clients[c])} of {c}" for c in most)
            more, texts = " …" * (len(own) > 3), sum(map(_texts, clients.values()))
            yield f"{sum(own.values())} of {texts} training texts {whose} ({by}{more})."
        if test.get(name):
            yield f"{test[name]} of {_texts(test)} test texts {whose}."
    if unlearnt := test.get("unlearnt"):
        names = ", ".join(list(unlearnt)[:3]) + " …" * (len(unlearnt) > 3)
        yield (
            f"{sum(unlearnt.values())} of {test['num_examples']} test rows are of classes that no "
            f"client has ({names}): nobody can learn them."
        )
    if data.get("useless"):
        yield f"Left out, with nothing to learn from: {', '.join(data['useless'])}."
    public, size = data.get("public") or {}, asked.get("public_size")
    if size and not asked.get("set_aside") and public.get("num_examples") == 0:
        yield (
            f"Nothing needs a public set, so data.public_size={size} took no rows from "
            "the clients; data.set_aside would."
        )
    if data.get("head"):
        yield str(data["head"])


def _texts(table: Mapping[str, int]) -> int:
    """Return how many texts the rows of a table make: a chat may make several."""
    return table.get("texts", table.get("num_examples", 0))


def _first_line(error: object) -> str:
    """Return what is said of an error in a table."""
    text = str(error or "it is not known why").strip().removeprefix("UserError: ")
    line = text.partition("\n")[0]
    return line if len(line) <= _MOST else f"{line[:_MOST]} …"


def _evaluation(run: Run, key: str) -> object:
    found = run.config.get("evaluation")
    return found.get(key) if isinstance(found, dict) else None


def _name(row: Row, key: str) -> str:
    """Return which component stands at a key of an arm's configuration."""
    found = row.runs[0].config.get(key)
    return str(found.get("name", "") if isinstance(found, dict) else found or "")


def _row(arm: str, runs: list[Run]) -> Row:
    counted = [run for run in runs if run.state == "finished"] or runs
    values = {
        measure.name: stat
        for measure in MEASURES
        if (stat := Stat.of(measure.of(run) for run in counted)) is not None
    }
    return Row(arm, tuple(runs), tuple(counted), values)


def shown(row: Row, measure: str) -> str:
    """Return a measure of an arm for people, "–" where the arm does not have it."""
    stat = row.values.get(measure)
    return human.NONE if stat is None else BY_NAME[measure].show(stat.mean, stat.sd)
