"""Keep a comparison: its runs in short as JSON, and the tables and plots that reports make of them.

    python benchmarks/keep.py frontier_fedllm runs/20260101-120000_compare_files

Runs are added to `results/<name>.json`, where each replaces the one of the same arm and seed, so that
a long comparison can be made and kept in pieces. `results/<name>.md` is what `trillium report` writes
as `table.md`, of all that are kept; without a folder it is written again.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trillium.config.comparison import comparison
from trillium.config.experiment import read_yaml
from trillium.files import write_atomic
from trillium.report.curves import plot_bytes
from trillium.report.markdown import markdown
from trillium.report.reach import goals
from trillium.report.read import Run, read_runs
from trillium.report.style import png, quiet_style
from trillium.report.summary import Row, summarise
from trillium.report.traffic import RoundTraffic, Traffic

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
SETTINGS = ("rounds", "framework", "head", "task", "model", "data", "adapter", "training", "wire")
DROPPED = ("missing", "asked", "replied")  # of an evaluation
FOLDERS = ("--out", "--data", "--runs")  # options whose value is a folder of the machine
Entry = dict[str, Any]


def entry_of(run: Run) -> Entry:
    """Return what is kept of a run; bytes and FLOPs are a client's, up to each evaluation."""
    assert run.traffic is not None
    count = run.num_clients
    points = []
    for line in run.evaluations:
        spent = run.traffic.until(line["round"])
        kept = {key: value for key, value in line.items() if key not in DROPPED}
        flops = None if spent.flops is None else spent.flops / count
        sent = {"bytes_up": spent.bytes_up / count, "bytes_down": spent.bytes_down / count}
        points.append({**kept, **sent, "flops": flops})
    return {
        "arm": run.arm,
        "seed": run.seed,
        "settings": {key: run.config[key] for key in SETTINGS},
        "num_clients": count,
        "num_train": sum(c["num_examples"] for c in run.data["clients"].values()),
        "num_test": run.data["test"]["num_examples"],
        "bytes_once": run.traffic.bytes_once / count,
        "kinds": {" ".join(k): size / count for k, size in run.traffic.kinds.items()},
        "peak_bytes": run.traffic.peak_bytes,
        "points": points,
        "env": {key: run.env.get(key) for key in ("device", "git_sha", "versions")},
        "command": command(run.env.get("argv") or []),
        "started": run.status["started"],
        "seconds": run.status["seconds"],
    }


def run_of(entry: Entry) -> Run:
    """Return a run as reports take it; what was not kept of it is not known."""
    count = entry["num_clients"]
    so_far = {
        point["round"]: RoundTraffic(
            round(point["bytes_up"] * count),
            round(point["bytes_down"] * count),
            None if point["flops"] is None else point["flops"] * count,
        )
        for point in entry["points"]
    }
    traffic = Traffic(
        so_far=so_far,
        num_turns=1,
        bytes_once=round(entry["bytes_once"] * count),
        peak_bytes=entry["peak_bytes"],
    )
    return Run(
        folder=Path(f"{entry['arm']}_s{entry['seed']}"),
        arm=entry["arm"],
        seed=entry["seed"],
        state="finished",
        status={"started": entry["started"], "seconds": entry["seconds"]},
        config=entry["settings"],
        env={**entry["env"], "argv": shlex.split(entry["command"])},
        data={"clients": {f"client-{number}": {} for number in range(count)}},
        evaluations=entry["points"],
        traffic=traffic,
    )


def command(argv: Sequence[str]) -> str:
    """Return a command line without the folders of the machine that it was given on."""
    pairs = zip(["", *argv[:-1]], argv, strict=True)
    words = [word for before, word in pairs if word not in FOLDERS and before not in FOLDERS]
    return shlex.join(
        word for word in words if not word.startswith(tuple(f"{o}=" for o in FOLDERS))
    )


def keep(name: str, folder: Path | None, results: Path = RESULTS) -> str:
    """Add the finished runs of a folder to what is kept under a name; return the table."""
    recipe = read_yaml(HERE / f"{name}.yaml")
    comparing = comparison(recipe, {})
    path = results / f"{name}.json"
    kept: list[Entry] = (
        json.loads(path.read_text(encoding="utf-8"))["runs"] if path.is_file() else []
    )
    entries = {(entry["arm"], entry["seed"]): entry for entry in kept}
    for run in read_runs(folder) if folder is not None else []:
        if run.state == "finished" and run.arm in comparing.arms:
            assert run.seed is not None
            entries[run.arm, run.seed] = entry_of(run)
    arms = list(comparing.arms)
    ordered = sorted(entries, key=lambda key: (arms.index(key[0]), key[1]))
    results.mkdir(parents=True, exist_ok=True)
    content = {"runs": [entries[key] for key in ordered]}
    write_atomic(path, json.dumps(content, indent=1) + "\n")
    rows = summarise(run_of(entries[key]) for key in ordered)
    text = markdown(name, rows, goals(rows, comparing.reach), comparing.told())
    for label, group in by_data(rows).items():
        image = path.with_name(f"{name}{label}.png")
        if any(len(run.evaluations) > 2 for row in group for run in row.runs):
            draw(image, group)
            text += f"\n![Accuracy against bytes]({image.name})\n"
    write_atomic(path.with_suffix(".md"), text)
    return text


def by_data(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the arms on the same data together, under what their labels end with in common."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        partition: Mapping[str, Any] = row.counted[0].config["data"]["partition"]
        label = "_".join(str(value) for value in partition.values())
        groups.setdefault(label, []).append(row)
    return {f"_{label}" if len(groups) > 1 else "": group for label, group in groups.items()}


def draw(path: Path, rows: Sequence[Row]) -> None:
    """Write the plot of quality against bytes, if there is any."""
    with quiet_style():
        figure = plot_bytes(rows)
        if figure is not None:
            path.write_bytes(png(figure))


def main() -> None:
    """Keep a folder, and print the table."""
    parser = argparse.ArgumentParser(description="Keep the runs of a comparison")
    parser.add_argument("name", help="of the recipe beside this file, without .yaml")
    parser.add_argument("folder", type=Path, nargs="?", help="of the comparison")
    options = parser.parse_args()
    print(keep(options.name, options.folder))


if __name__ == "__main__":
    main()
