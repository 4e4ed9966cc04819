"""Tables and pictures of the study, from what `study.py keep` wrote.

    python benchmarks/comparison/figures.py

writes `results/comparison.md` and, into `docs/images`, a picture of each axis with the three measures
side by side, and one of accuracy against bytes at the default point.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from matplotlib.figure import Figure
from study import AXES, BASELINES, HERE, KEPT

from trillium.files import write_atomic
from trillium.report import human
from trillium.report.human import show_bytes, show_flops
from trillium.report.style import arm_styles, png, quiet_style, scale_axis
from trillium.report.summary import Stat

TEXT = KEPT.with_suffix(".md")
IMAGES = HERE.parents[1] / "docs" / "images"
ARMS: dict[str, Any] = yaml.safe_load((HERE / "study.yaml").read_text(encoding="utf-8"))["arms"]
LEVEL = 0.9  # of the centralised accuracy, for times
PLACES = ("office", "home", "phone")
MEASURES = ("accuracy", "bytes", "flops", "peak_bytes")
Runs = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Scenario:
    """A federation, by the point nearest to it, and what its owners would accept of a client."""

    about: str
    point: str
    place: str
    bytes: float
    peak_bytes: float
    minutes: float


SCENARIOS = {
    "phones": Scenario(
        "phones on mobile links, ten of a hundred at a time", "clients_100", "phone", 1e6, 150e6, 2
    ),
    "clinics": Scenario("clinics with office PCs, skewed", "skew_0.1", "office", 20e6, 1e9, 5),
    "banks": Scenario(
        "few owners with much data and fast links", "rows_500", "office", 1e9, 8e9, 60
    ),
    "own models": Scenario("owners with models of their own", "own_models", "home", 5e6, 1e9, 10),
    "large model": Scenario(
        "clients that hold a third of what training the model takes",
        "blocks_3",
        "home",
        100e6,
        70e6,
        10,
    ),
}


class Found:
    """The runs of the study, and their means."""

    def __init__(self, runs: Runs) -> None:
        self.runs = runs

    def of(self, point: str, arm: str) -> Runs:
        """Return the runs of an arm at a point."""
        return [run for run in self.runs if run["point"] == point and run["arm"] == arm]

    def axis(self, axis: str) -> dict[str, str]:
        """Return the points of an axis that have been run, by their values."""
        run = {run["point"] for run in self.runs}
        return {value: point for value, point in AXES[axis].items() if point in run}

    def values(self, point: str, arm: str, measure: str) -> Stat | None:
        """Return what an arm has come to: the last accuracy, and what a client has spent in all."""
        return Stat.of(at_end(run, measure) for run in self.of(point, arm))

    def way(self, point: str, arm: str) -> Stat | None:
        """Return the share of the way from local only to centralised, seed by seed."""
        ends = {
            name: {run["seed"]: run["curve"][-1]["accuracy"] for run in self.of(point, name)}
            for name in ("local_only", "centralised", arm)
        }
        low, high, own = ends.values()
        both = low.keys() & high.keys() & own.keys()
        return Stat.of((own[s] - low[s]) / (high[s] - low[s]) for s in sorted(both))

    def seconds(self, point: str, arm: str, place: str, level: float) -> float | None:
        """Return the mean seconds to an accuracy; nothing if a seed never gets there."""
        found = list[float | None]()
        none: Mapping[str, float] = {}
        for run in self.of(point, arm):
            there = (line["seconds"] for line in run["curve"] if line["accuracy"] >= level)
            found.append(next(there, none).get(place))
        known = [seconds for seconds in found if seconds is not None]
        return statistics.fmean(known) if known and len(known) == len(found) else None


def at_end(run: Mapping[str, Any], measure: str) -> float | None:
    """Return a measure of a whole run; bytes with what crosses once."""
    value: float | None = run.get(measure, run["curve"][-1].get(measure))
    return value if value is None or measure != "bytes" else value + run["bytes_once"]


SHOW = {
    "accuracy": human.percent,
    "bytes": show_bytes,
    "flops": show_flops,
    "peak_bytes": show_bytes,
}
TITLES = {
    "accuracy": "Accuracy",
    "bytes": "Bytes of a client",
    "flops": "FLOPs of a client",
    "peak_bytes": "Peak memory of a client",
}


def shown(stat: Stat | None, measure: str) -> str:
    """Return mean and deviation for people."""
    return human.NONE if stat is None else SHOW[measure](stat.mean, stat.sd)


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    rows = [head, ["---"] * len(head), *lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def default_table(found: Found) -> str:
    """Return all measures of all arms at the default point."""
    level = _level(found, "default")
    head = [
        "Arm",
        *TITLES.values(),
        "Way to centralised",
        *(f"To {100 * level:.0f} %, {p}" for p in PLACES),
    ]
    lines = []
    for arm in ARMS:
        way = None if arm in BASELINES else found.way("default", arm)
        times = [found.seconds("default", arm, place, level) for place in PLACES]
        lines.append(
            [
                arm,
                *(shown(found.values("default", arm, m), m) for m in MEASURES),
                human.NONE if way is None else human.percent(way.mean, way.sd),
                *(human.NONE if t is None else human.duration(t) for t in times),
            ]
        )
    return table(head, lines)


def axis_table(found: Found, axis: str, measure: str) -> str:
    """Return a measure of all arms along an axis."""
    points = found.axis(axis)
    lines = [
        [arm, *(shown(found.values(p, arm, measure), measure) for p in points.values())]
        for arm in ARMS
    ]
    kept = [line for line in lines if set(line[1:]) != {human.NONE}]
    return table([TITLES[measure], *points], kept)


def scenario_table(found: Found) -> str:
    """Return which arms are within what the owners of each federation would accept."""
    lines = []
    for name, scene in SCENARIOS.items():
        most = {"bytes": scene.bytes, "peak_bytes": scene.peak_bytes, "seconds": 60 * scene.minutes}
        within = []
        for arm in ARMS:
            spent = {
                m: found.values(scene.point, arm, m) for m in ("accuracy", "bytes", "peak_bytes")
            }
            ends = [
                run["curve"][-1]["seconds"].get(scene.place) for run in found.of(scene.point, arm)
            ]
            if arm in BASELINES or not ends or None in ends or None in spent.values():
                continue
            means = {m: stat.mean for m, stat in spent.items() if stat is not None}
            means["seconds"] = statistics.fmean(ends)
            if all(means[measure] <= limit for measure, limit in most.items()):
                within.append((means["accuracy"], f"{arm} {human.percent(means['accuracy'])}"))
        limits = f"{show_bytes(scene.bytes)}, {show_bytes(scene.peak_bytes)}, {scene.minutes:g} min"
        is_known = any(run["point"] == scene.point for run in found.runs)
        ordered = ", ".join(text for _, text in sorted(within, reverse=True))
        ordered = ordered or ("none" if is_known else "not measured yet")
        lines.append([name, f"{scene.about} (`{scene.point}`)", scene.place, limits, ordered])
    return table(["", "Federation", "Links and devices", "At most, of a client", "Within"], lines)


def _level(found: Found, point: str) -> float:
    top = found.values(point, "centralised", "accuracy")
    return math.nan if top is None else LEVEL * top.mean


def axis_figure(found: Found, axis: str) -> Figure:
    """Draw accuracy, bytes and FLOPs of all arms along an axis."""
    points = found.axis(axis)
    styles = _styles()
    figure = Figure(figsize=(13.5, 4.0), layout="constrained")
    for axes, measure in zip(figure.subplots(1, 3), ("accuracy", "bytes", "flops"), strict=True):
        seen: list[float] = []
        for place, arm in enumerate(ARMS):
            if arm == "zero_shot":
                continue
            stats = [
                (x, found.values(point, arm, measure)) for x, point in enumerate(points.values())
            ]
            known = [(x, stat) for x, stat in stats if stat is not None]
            if not known or (measure == "bytes" and arm in BASELINES):
                continue
            scale = 100 if measure == "accuracy" else 1
            shift = (place - len(ARMS) / 2) * 0.03
            seen += [scale * stat.mean for _, stat in known]
            axes.errorbar(
                [x + shift for x, _ in known],
                [scale * stat.mean for _, stat in known],
                yerr=[scale * (stat.sd or 0.0) for _, stat in known],
                label=arm,
                capsize=2,
                **styles[arm],
            )
        axes.set_title(TITLES[measure])
        axes.set_xticks(range(len(points)), points)
        axes.set_xlabel(axis)
        if measure == "accuracy":
            axes.set_ylabel("%")
        else:
            scale_axis(axes.yaxis, seen, "B" if measure == "bytes" else "FLOPs", log=True)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper")
    return figure


def pareto_figure(found: Found) -> Figure:
    """Draw accuracy against bytes at the default point; areas are the FLOPs of a client."""
    styles = _styles()
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.subplots()
    spent: list[float] = []
    for arm in ARMS:
        accuracy, sent, flops = (
            found.values("default", arm, m) for m in ("accuracy", "bytes", "flops")
        )
        if accuracy is None or arm == "zero_shot":
            continue
        style = styles[arm]
        if arm in BASELINES or sent is None or flops is None:
            line = {"color": style["color"], "linestyle": style["linestyle"]}
            axes.axhline(100 * accuracy.mean, label=arm, **line)
            continue
        spent.append(sent.mean)
        axes.errorbar(
            sent.mean, 100 * accuracy.mean, yerr=100 * (accuracy.sd or 0), color=style["color"]
        )
        area = 40 + 400 * flops.mean / 1e12
        axes.scatter(
            sent.mean, 100 * accuracy.mean, s=area, alpha=0.7, label=arm, color=style["color"]
        )
        axes.annotate(
            arm, (sent.mean, 100 * accuracy.mean), xytext=(9, 7), textcoords="offset points"
        )
    scale_axis(axes.xaxis, [*spent, 2 * max(spent)], "B", log=True)  # room for the last label
    axes.set_xlabel("Bytes up and down of a client, in all; areas are its FLOPs")
    axes.set_ylabel("Accuracy, %")
    figure.legend(*_baselines(axes), loc="outside lower center", ncols=2)
    return figure


def _styles() -> dict[str, dict[str, Any]]:
    names = {arm: tree["framework"] for arm, tree in ARMS.items()}
    plain = {arm: name if isinstance(name, str) else name["name"] for arm, name in names.items()}
    return arm_styles({arm: "" if arm in BASELINES else name for arm, name in plain.items()})


def _baselines(axes: Any) -> tuple[list[Any], list[str]]:
    pairs = zip(*axes.get_legend_handles_labels(), strict=True)
    kept = [(handle, label) for handle, label in pairs if label in BASELINES]
    return [handle for handle, _ in kept], [label for _, label in kept]


def main() -> None:
    """Write the tables and the pictures."""
    found = Found(json.loads(KEPT.read_text(encoding="utf-8"))["runs"])
    text = "# The study: which framework, when\n\n"
    text += (
        "Made with `benchmarks/comparison/study.py`; `docs/comparison.md` says what it shows.\n\n"
    )
    text += f"## The default point\n\n{default_table(found)}\n"
    text += "![Accuracy against bytes](../../docs/images/comparison_bytes.png)\n\n"
    with quiet_style():
        (IMAGES / "comparison_bytes.png").write_bytes(png(pareto_figure(found)))
        for axis in AXES:
            if len(found.axis(axis)) < 2:
                continue  # nothing to compare yet
            name = f"comparison_{axis.replace(',', '').replace(' ', '_').lower()}.png"
            (IMAGES / name).write_bytes(png(axis_figure(found, axis)))
            tables = "\n".join(axis_table(found, axis, measure) for measure in MEASURES)
            text += f"## By {axis}\n\n{tables}\n![By {axis}](../../docs/images/{name})\n\n"
    text += f"## Who can do it\n\n{scenario_table(found)}"
    write_atomic(TEXT, text)
    print(TEXT)


if __name__ == "__main__":
    main()
