"""What a report is of, and what was found, in words."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from trillium.report import human
from trillium.report.curves import plotted_measures
from trillium.report.human import show_bytes, show_flops
from trillium.report.interval import interval
from trillium.report.measure import Measure
from trillium.report.read import Run
from trillium.report.summary import Row, guesses_only

LESS_IS_BETTER = ("perplexity", "rmse", "loss")
CLOSE = 0.95  # of the best, where no interval is known
LINK = 10e6  # bits per second
_LESS = 1.5  # times fewer bytes, to be worth a sentence
_TASKS = {
    "classification": "Text classification",
    "multi_label": "Multi-label classification",
    "regression": "Regression",
    "token_classification": "Token classification",
    "causal_lm": "Language modelling",
    "preference": "Preference optimisation",
}


def title(rows: Sequence[Row]) -> str:
    """Return task, data, model and rounds in words; nothing where no configuration is left."""
    configs = [row.counted[0].config for row in rows if row.counted[0].config.get("model")]
    if not configs:
        return ""
    task = _one({_TASKS.get(name, name) for config in configs if (name := _name(config, "task"))})
    data = _one({_data(config) for config in configs})
    model = _one({_model(config) for config in configs})
    text = task or "Fine-tuning"
    text += f" of {data}" if data else ""
    text += f" with {model}" if model else f" with {len({_model(c) for c in configs})} models"
    spans = [_rounds(row.counted[0]) for row in rows if not row.is_baseline]
    if spans := [span for span in spans if span]:
        least, most = min(spans), max(spans)
        text += f", {most} round{'s' if most != 1 else ''}"
        text = text if least == most else text.replace(f", {most} ", f", {least} to {most} ")
    return text


def outcome(rows: Sequence[Row]) -> list[str]:
    """Return what was found, the most important sentence first."""
    measure = _telling(rows)
    measured = [row for row in rows if measure is not None and measure.name in row.values]
    if measure is None or not measured:
        return ["Nothing has been measured yet."]
    federated = [row for row in measured if not row.is_baseline]
    if len(rows) == 1 or not federated:
        return [_alone(row, measure) for row in measured[:1]]
    best = _best(federated, measure)
    said = [f"{_value(best, measure)}{_spent(best)}"]
    if len(federated) > 1 and len({row.values[measure.name].mean for row in federated}) == 1:
        said = [f"All {len(federated)} federated arms come to {_value(best, measure)}."]
    elif len(federated) > 1:
        said = [f"{best.arm} is the best of {len(federated)} federated arms with {said[0]}."]
        said += _frugal(best, federated, measure)
    else:
        said = [f"{best.arm} reaches {said[0]}."]
    others = [
        f"{row.arm} {_value(row, measure)}"
        for row in measured
        if row.is_baseline and not guesses_only(row)
    ]
    if others:
        said.append(f"For comparison: {', '.join(others)}.")
    return said


def costs(rows: Sequence[Row]) -> list[str]:
    """Return which framework computes least at a client, and what bytes are as time on a link."""
    federated = [row for row in rows if not row.is_baseline]
    flops = {r.arm: r.values["flops_per_client"].mean for r in federated
             if "flops_per_client" in r.values}  # fmt: skip
    found = []
    if len(flops) > 1:
        least = min(flops, key=flops.__getitem__)
        found.append(f"{least} has the least to compute at a client, {show_flops(flops[least])}.")
    seconds = {r.arm: 8 * r.values["bytes_per_client"].mean / LINK for r in federated
               if "bytes_per_client" in r.values}  # fmt: skip
    order = sorted(filter(seconds.get, seconds), key=lambda arm: -seconds[arm])
    each = [f"{arm} {human.duration(seconds[arm])}" for arm in order]
    if order:
        take = f": {', '.join(each)}" if len(each) > 1 else f" {human.duration(seconds[order[0]])}"
        found.append(f"Over a link of 10 Mbit/s, the messages of a client take{take}.")
    return found


def next_steps(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Return what to try next: for what, and the command."""
    runs = [run for row in rows for run in row.counted]
    argv = [str(word) for word in runs[0].env.get("argv") or ()][1:] if runs else []
    found = []
    if len(rows) > 1 and argv[:1] == ["compare"] and max(len(row.counted) for row in rows) == 1:
        again = shlex.join(["trillium", *argv, "--seeds", "3"])
        found.append(("How much of this is chance", again))
    if any(_name(run.config.get("data") or {}, "source") == "builtin" for run in runs):
        found.append(("Your own data", "trillium compare --data requests.csv"))
        found.append(("What a larger model would cost", "trillium plan model.id=llama-3-8b"))
    return found


def _telling(rows: Sequence[Row]) -> Measure | None:
    """Return the first measure of quality in which federated arms differ, or else the first."""
    measures = plotted_measures(rows)
    for measure in measures:
        values = (row.values.get(measure.name) for row in rows if not row.is_baseline)
        if len({stat.mean for stat in values if stat is not None}) > 1:
            return measure
    return next(iter(measures), None)


def is_better(measure: str, value: float, other: float) -> bool:
    """Whether one value of a measure of quality is better than another."""
    return value < other if measure in LESS_IS_BETTER else value > other


def _best(rows: Sequence[Row], measure: Measure) -> Row:
    found = rows[0]
    for row in rows[1:]:
        if is_better(measure.name, row.values[measure.name].mean, found.values[measure.name].mean):
            found = row
    return found


def _frugal(best: Row, rows: Sequence[Row], measure: Measure) -> list[str]:
    """Return which arm is as good as can be told, and sends far fewer bytes."""
    close = [row for row in rows if row is not best and _is_close(row, best, measure)]
    sizes = {row.arm: row.values["bytes_per_client"].mean for row in (best, *close)
             if "bytes_per_client" in row.values}  # fmt: skip
    close = [row for row in close if sizes.get(row.arm)]
    if not close or best.arm not in sizes:
        return []
    least = min(close, key=lambda row: sizes[row.arm])
    times = sizes[best.arm] / sizes[least.arm]
    if times < _LESS:
        return []
    found = interval(best, measure.name)
    how = "" if found is None else f", no less as far as {found.num_rows} test rows can tell"
    return [
        f"{least.arm} reaches {measure.show(least.values[measure.name].mean, None)} for "
        f"{human.significant(times, 2)} times fewer bytes "
        f"({show_bytes(sizes[least.arm])}){how}."
    ]


def _is_close(row: Row, best: Row, measure: Measure) -> bool:
    value, top = row.values[measure.name], best.values[measure.name]
    found = interval(best, measure.name)
    if found is not None:
        return value.mean >= found.low
    room = top.sd if top.sd else (1 - CLOSE) * abs(top.mean)
    return abs(value.mean - top.mean) <= room


def _alone(row: Row, measure: Measure) -> str:
    verb = "reaches" if row.state == "finished" else f"({row.state}) has come to"
    after = _rounds(row.counted[0])
    where = f" after {after} round{'s' if after != 1 else ''}" if after else ""
    flops = row.values.get("flops_per_client")
    computed = f"; each computed {show_flops(flops.mean)}" if flops else ""
    return f"{row.arm} {verb} {_value(row, measure)}{where}{_spent(row)}{computed}."


def _value(row: Row, measure: Measure) -> str:
    stat, found = row.values[measure.name], interval(row, measure.name)
    text = f"{measure.show(stat.mean, stat.sd)} {measure.title.lower()}"
    return text if found is None else f"{text} {found.shown}"


def _spent(row: Row) -> str:
    stat = row.values.get("bytes_per_client")
    return f", for {show_bytes(stat.mean)} up and down per client" if stat and stat.mean else ""


def _rounds(run: Run) -> int:
    return int(run.evaluations[-1]["round"]) if run.evaluations else 0


def _one(names: set[str]) -> str:
    return names.pop() if len(names) == 1 else ""


def _name(config: dict[str, Any], key: str) -> str:
    found = config.get(key)
    return str(found.get("name", "") if isinstance(found, dict) else found or "")


def _model(config: dict[str, Any]) -> str:
    found = config["model"]
    return PurePath(str(found.get("id", "") if isinstance(found, dict) else found)).name


def _data(config: dict[str, Any]) -> str:
    """Return the data of a run as people call it: a file, a data set of the hub, the built-in one."""
    data = config.get("data")
    source = data.get("source") if isinstance(data, dict) else None
    if not isinstance(source, dict):
        return str(source or "")
    if source.get("name") == "builtin":
        return "built-in requests"
    given = source.get("train") or source.get("path") or source.get("name")
    if isinstance(given, list):
        given = given[0] if len(given) == 1 else f"{len(given)} files"
    return PurePath(str(given or "")).name
