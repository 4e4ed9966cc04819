"""The runs of a frontier benchmark: one JSON entry per run, and curves over the seeds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from banking77_results import command
from frontier_curves import Curve, Point, best
from frontier_plot import Series, plot
from frontier_tables import tables
from frontier_teacher import read_teachers
from trillium.config.experiment import Tree
from trillium.files import write_atomic
from trillium.report.read import Run, read_run
from trillium.report.summary import Stat

Entry = dict[str, Any]
Key = tuple[str, str, int]
SETTINGS = ("rounds", "framework", "head", "task", "adapter", "training", "wire")


class Results:
    """All runs, in a JSON file that grows with each one; tables and plots beside it.

    Args:
        path: of the files, without suffix.
        recipe: says what the arms are called, and which of them are what.
        grid: words of the arms of the tuning grids, by label.
    """

    def __init__(self, path: Path, recipe: Tree, grid: Mapping[str, Sequence[str]]) -> None:
        self._path, self.recipe, self.grid = path, recipe, grid
        file = path.with_suffix(".json")
        content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        self.references: dict[str, dict[str, float]] = dict(content.get("references", {}))
        self._entries: dict[Key, Entry] = {_key(e): e for e in content.get("runs", [])}
        self._read: set[Path] = set()

    @property
    def entries(self) -> list[Entry]:
        """All runs, in an order of their own."""
        return [self._entries[key] for key in sorted(self._entries)]

    def of_arm(self, partition: str, arm: str) -> list[Entry]:
        """Return the runs of an arm, by seed."""
        return [e for e in self.entries if (e["partition"], e["arm"]) == (partition, arm)]

    @property
    def partitions(self) -> list[str]:
        """Those of which there are runs, in the recipe's order."""
        found = {partition for partition, _, _ in self._entries}
        return [name for name in self.recipe["partitions"] if name in found]

    def reference(self, name: str, scores: dict[str, float]) -> None:
        """Add the scores of a model that has all data in one place and is no arm."""
        self.references[name] = scores

    def collect(self, runs: Path) -> None:
        """Take over what has finished in the folders `<runs>/<partition>/<arm>_s<seed>`."""
        for status in sorted(runs.glob("*/*_s*/status.json")):
            if status.parent in self._read:
                continue
            if json.loads(status.read_text(encoding="utf-8"))["state"] == "finished":
                entry = entry_of(status.parent.parent.name, read_run(status.parent))
                self._entries[_key(entry)] = entry
                self._read.add(status.parent)
        content = {"references": self.references, "runs": self.entries}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self._path.with_suffix(".json"), json.dumps(content) + "\n")

    def best(self, partition: str, arm: str, seed: int) -> float | None:
        """Return the best accuracy of a run over its rounds, if it has finished."""
        entry = self._entries.get((partition, arm, seed))
        return None if entry is None else max(p["accuracy"] for p in entry["points"])

    def seeds(self, partition: str, arm: str) -> list[int]:
        """Return the seeds of an arm's runs."""
        return [entry["seed"] for entry in self.of_arm(partition, arm)]

    def curve(self, partition: str, arm: str) -> Curve:
        """Return an arm's evaluations over its seeds, those that all of them have."""
        runs = [
            {point["round"]: point for point in entry["points"]}
            for entry in self.of_arm(partition, arm)
        ]
        found = []
        for number in sorted(set.intersection(*map(set, runs))) if runs else []:
            points = [run[number] for run in runs]
            accuracy = Stat.of(point["accuracy"] for point in points)
            assert accuracy is not None
            up, down = (sum(p[k] for p in points) / len(points) for k in ("bytes_up", "bytes_down"))
            found.append(Point(number, accuracy, up, down))
        return found

    def title(self, arm: str) -> str:
        """Return what the tables call an arm."""
        return str(self.recipe["titles"].get(arm, arm))

    def markdown(self) -> str:
        """Return all tables."""
        return tables(self)

    def image(self, partition: str) -> Path:
        """Return where the plot of a partition lies."""
        return self._path.with_name(f"{self._path.name}_{partition}.png")

    def write(self) -> None:
        """Write tables and plots."""
        write_atomic(self._path.with_suffix(".md"), self.markdown())
        shown = self.recipe["plotted"]
        for partition in self.partitions:
            curves = {arm: self.curve(partition, arm) for arm in shown}
            series = [
                Series(
                    self.title(arm),
                    [point.bytes_total for point in found],
                    [point.accuracy for point in found],
                    is_level=arm == "centralised",
                    is_ours=arm in self.recipe["ours"],
                )
                for arm, found in curves.items()
                if found
            ]
            if series:
                reference = best(self.curve(partition, self.recipe["baseline_schedules"][0]))
                image = plot(series, partition, reference, self.recipe["margin"])
                self.image(partition).write_bytes(image)


def _key(entry: Entry) -> Key:
    return entry["partition"], entry["arm"], entry["seed"]


def entry_of(partition: str, run: Run) -> Entry:
    """Return what is kept of a run.

    What is sent once, as a public set is, comes before the first round and counts from there on.
    """
    assert run.traffic is not None
    points = []
    once = run.traffic.bytes_once / run.num_clients
    for line in run.evaluations:
        sent = run.traffic.until(line["round"])
        points.append(
            {
                "round": line["round"],
                "accuracy": line["accuracy"],
                "f1": line["f1"],
                "loss": line["loss"],
                "bytes_up": sent.bytes_up / run.num_clients,
                "bytes_down": sent.bytes_down / run.num_clients + once,
            }
        )
    return {
        "partition": partition,
        "arm": run.arm,
        "seed": run.seed,
        "settings": {name: run.config[name] for name in SETTINGS},
        "num_clients": run.num_clients,
        "num_train": sum(c["num_examples"] for c in run.data["clients"].values()),
        "num_test": run.data["test"]["num_examples"],
        "bytes_once": once,
        "kinds": {" ".join(k): v / run.num_clients for k, v in run.traffic.kinds.items()},
        "points": points,
        "teachers": read_teachers(run.folder),
        "seconds": run.status["seconds"],
        "device": run.env["device"],
        "dtype": run.config["model"]["dtype"],
        "command": command(run.env["argv"]),
        "git_sha": run.env["git_sha"],
        "versions": run.env["versions"],
        "started": run.status["started"],
    }
