"""The results of benchmarks/banking77.py: one JSON entry per partition, arm and seed; one table."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from trillium.files import write_atomic
from trillium.report import human
from trillium.report.measures import BY_NAME
from trillium.report.read import Run, is_run_folder, read_run
from trillium.report.summary import Stat, summarise

COLUMNS = (
    "accuracy",
    "f1",
    "clients_accuracy",
    "bytes_up_per_client_round",
    "bytes_down_per_client_round",
    "bytes_per_client",
    "flops_per_client",
    "peak_bytes_client",
    "seconds_per_client",
    "wall_seconds",
)
SETTINGS = ("rounds", "dtype", "device", "num_test")  # runs that differ in these are not averaged
Entry = dict[str, Any]


_FOLDERS = ("--data", "--texts", "--runs", "--out")


class Results:
    """A JSON file and a table beside it, which grow with each run.

    Args:
        path: of both files, without suffix.
        arms: their order in the table.
    """

    def __init__(self, path: Path, arms: Sequence[str]) -> None:
        self._path, self._arms = path, list(arms)
        self._references: dict[str, dict[str, float]] = {}
        self._entries: dict[tuple[str, str, int], Entry] = {}
        self._read()

    def _read(self) -> None:
        """Take over what the file holds: another process may have added runs meanwhile."""
        file = self._path.with_suffix(".json")
        content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        self._references = dict(content.get("references", {}))
        self._entries = {_key(entry): entry for entry in content.get("results", [])}

    def reference(self, name: str, scores: dict[str, float]) -> None:
        """Add the scores of a model that has all data in one place and is no arm."""
        self._read()
        self._references[name] = scores
        self._write()

    def add(self, partition: str, folder: Path) -> None:
        """Add the finished runs of a compare folder."""
        self._read()
        for path in sorted(path for path in folder.iterdir() if is_run_folder(path)):
            run = read_run(path)
            if run.state == "finished":
                entry = _entry(partition, run)
                self._entries[_key(entry)] = entry
        self._write()

    def markdown(self) -> str:
        """Return the table: mean ± standard deviation over seeds."""
        titles = ["Partition", "Arm", *(BY_NAME[name].title for name in COLUMNS)]
        titles += ["Rounds", "Seeds"]
        lines = ["# Banking77", "", _line(titles), _line(["---"] * len(titles))]
        for group in self._groups():
            first = group[0]
            cells = [first["partition"], first["arm"]]
            cells += [_cell(name, group) for name in COLUMNS]
            cells += [str(first["rounds"]), ", ".join(str(entry["seed"]) for entry in group)]
            lines.append(_line(cells))
        lines += ["", "With all training rows in one place:", ""]
        for name, scores in self._references.items():
            lines.append(
                f"- {name}: accuracy {human.percent(scores['accuracy'])}, "
                f"F1 (macro) {human.percent(scores['f1'])}"
            )
        lines += ["", "Definitions:", ""]
        lines += [f"- {BY_NAME[name].title}: {BY_NAME[name].definition}" for name in COLUMNS]
        lines += ["", "Made with:", ""]
        made: dict[str, list[str]] = {}
        for entry in self._sorted():
            made.setdefault(_provenance(entry), []).append(
                f"{entry['partition']}/{entry['arm']}/{entry['seed']}"
            )
        lines += [f"- {how}: {', '.join(which)}" for how, which in made.items()]
        return "\n".join(lines) + "\n"

    def _sorted(self) -> list[Entry]:
        def order(entry: Entry) -> tuple[int, str, int, str, int]:
            known = entry["arm"] in self._arms
            place = self._arms.index(entry["arm"]) if known else len(self._arms)
            return (entry["partition"] != "iid", entry["partition"], place, entry["arm"],
                    entry["seed"])  # fmt: skip

        return sorted(self._entries.values(), key=order)

    def _groups(self) -> list[list[Entry]]:
        """Return the entries that one line of the table is the mean of."""
        groups: dict[tuple[Any, ...], list[Entry]] = {}
        for entry in self._sorted():
            key = (entry["partition"], entry["arm"], *(entry[name] for name in SETTINGS))
            groups.setdefault(key, []).append(entry)
        return list(groups.values())

    def _write(self) -> None:
        content = {"references": self._references, "results": self._sorted()}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self._path.with_suffix(".json"), json.dumps(content, indent=1) + "\n")
        write_atomic(self._path.with_suffix(".md"), self.markdown())


def _key(entry: Entry) -> tuple[str, str, int]:
    return entry["partition"], entry["arm"], entry["seed"]


def _entry(partition: str, run: Run) -> Entry:
    """Return the measures of one run as the reports have them, and what it was made with."""
    (row,) = summarise([run])
    device = str(run.env["device"])
    is_gpu = device.startswith("cuda") and torch.cuda.is_available()
    return {
        "partition": partition,
        "arm": run.arm,
        "seed": run.seed,
        "framework": run.config["framework"],
        "shipped": row.shipped,
        "rounds": run.config["rounds"],
        "dtype": run.config["model"]["dtype"],
        "device": torch.cuda.get_device_name() if is_gpu else device,
        "num_test": run.data["test"]["num_examples"],
        "training": run.config["training"],
        "measures": {name: stat.mean for name, stat in row.values.items()},
        "command": command(run.env["argv"]),
        "git_sha": run.env["git_sha"],
        "python": run.env["python"],
        "versions": run.env["versions"],
        "started": run.status["started"],
    }


def _provenance(entry: Entry) -> str:
    versions = ", ".join(
        f"{name} {entry['versions'][name]}"
        for name in ("trillium", "torch", "transformers", "peft")
        if name in entry["versions"]
    )
    commit = (entry["git_sha"] or "unknown")[:10]
    return (
        f"`{entry['command']}` ({entry['device']}, {entry['dtype']}, {versions}, commit {commit})"
    )


def _cell(name: str, entries: Sequence[Entry]) -> str:
    stat = Stat.of(entry["measures"].get(name) for entry in entries)
    return human.NONE if stat is None else BY_NAME[name].show(stat.mean, stat.sd)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def command(argv: Sequence[str]) -> str:
    """Return a command line without the folders of the machine that it was given on."""
    pairs = zip(["", *argv[:-1]], argv, strict=True)
    return shlex.join(
        word for before, word in pairs if word not in _FOLDERS and before not in _FOLDERS
    )
