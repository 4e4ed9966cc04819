"""The runs of frontier_split.py: one JSON entry each, and their tables."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from banking77_results import command
from frontier_markdown import table
from frontier_split_plot import Dot, plot
from trillium.config.experiment import Tree
from trillium.files import write_atomic
from trillium.report import human
from trillium.report.measures import per_client, show_bytes, show_flops
from trillium.report.read import Run, read_run
from trillium.report.summary import Stat

Entry = dict[str, Any]
SETTINGS = ("rounds", "framework", "adapter", "training", "wire")
ATTACKS = {
    "nearest_accuracy": "Nearest embedding",
    "inverter_accuracy": "Linear inverter",
    "inverter_rouge_l": "Inverter, ROUGE-L",
    "distance_correlation": "Distance correlation",
}


@dataclass(frozen=True)
class Group:
    """The runs of an arm at a cut, which differ in their seeds.

    Attributes:
        arm, cut: what they are.
        entries: one for each seed.
    """

    arm: str
    cut: int
    entries: Sequence[Entry]

    @property
    def accuracy(self) -> Stat:
        """Over the seeds."""
        found = Stat.of(entry["accuracy"] for entry in self.entries)
        assert found is not None
        return found

    def mean(self, name: str) -> float:
        """Return the mean of a figure over the seeds."""
        return sum(float(entry[name]) for entry in self.entries) / len(self.entries)

    @property
    def num_bytes(self) -> float:
        """Up and down, of a client."""
        return self.mean("bytes_up") + self.mean("bytes_down")


class Results:
    """All runs, in a JSON file that grows with each one; tables and a plot beside it.

    Args:
        path: of the files, without suffix.
        recipe: says what models and arms are called, and what is to be reached.
    """

    def __init__(self, path: Path, recipe: Tree) -> None:
        self._path, self._recipe = path, recipe
        file = path.with_suffix(".json")
        content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        self._entries = {_key(entry): entry for entry in content.get("runs", [])}

    def collect(self, runs: Path) -> None:
        """Take over what has finished in the folders `<runs>/<model>/<arm>_cut<n>_s<seed>`."""
        for status in sorted(runs.glob("*/*_cut*_s*/status.json")):
            if json.loads(status.read_text(encoding="utf-8"))["state"] == "finished":
                entry = entry_of(status.parent.parent.name, read_run(status.parent))
                self._entries[_key(entry)] = entry
        content = {"runs": [self._entries[key] for key in sorted(self._entries)]}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self._path.with_suffix(".json"), json.dumps(content, indent=1) + "\n")

    def shown(self, model: str, label: str, seed: int) -> str:
        """Return what the log says of a run that has finished."""
        entry = self._entries[model, label, seed]
        sent = show_bytes(entry["bytes_up"] + entry["bytes_down"])
        return f"accuracy {human.percent(entry['accuracy'])}, {sent}, {show_flops(entry['flops'])}"

    def groups(self, model: str) -> list[Group]:
        """Return the runs of a model by arm and cut, those of the tuning left out."""
        found = []
        for arm in self._recipe["arms"]:
            for cut in self._recipe["arms"][arm]["cuts"]:
                label = f"{arm}_cut{cut}"
                own = [e for k, e in sorted(self._entries.items()) if k[:2] == (model, label)]
                if own:
                    found.append(Group(arm, cut, own))
        return found

    def write(self) -> None:
        """Write tables and plot."""
        write_atomic(self._path.with_suffix(".md"), self.markdown())
        panels = {
            how["title"]: [
                Dot(self._title(g.arm), g.cut, g.num_bytes, g.accuracy) for g in self.groups(model)
            ]
            for model, how in self._recipe["models"].items()
        }
        if any(panels.values()):
            image = plot({title: dots for title, dots in panels.items() if dots})
            self._path.with_suffix(".png").write_bytes(image)

    def markdown(self) -> str:
        """Return all tables."""
        recipe = self._recipe
        lines = [f"# {recipe['title']}", "", recipe["preface"], f"![]({self._path.name}.png)", ""]
        for model, how in recipe["models"].items():
            groups = self.groups(model)
            if groups:
                lines += [f"## {how['title']}", "", *self._costs(groups), ""]
                lines += [*self._targets(groups), "", *_leaks(groups, self._title)]
        return "\n".join([*lines, *self._tuning(), *self._made()]) + "\n"

    def _title(self, arm: str) -> str:
        return str(self._recipe["arms"][arm]["title"])

    def _baseline(self, groups: Sequence[Group], cut: int) -> Group | None:
        wanted = (self._recipe["baseline"], cut)
        return next((g for g in groups if (g.arm, g.cut) == wanted), None)

    def _costs(self, groups: Sequence[Group]) -> list[str]:
        titles = ["Arm", "Cut", "Accuracy", "Bytes of a client", "up", "down", "Fewer bytes",
                  "FLOPs of a client", "Fewer FLOPs", "Peak memory", "Seeds"]  # fmt: skip
        rows = []
        for g in groups:
            base, fewer = self._baseline(groups, g.cut), [human.NONE, human.NONE]
            pair = None if base is None or base is g else _paired(g, base)
            if pair is not None:
                own, other = pair
                fewer = [
                    _times(other.num_bytes / own.num_bytes),
                    _times(other.mean("flops") / own.mean("flops")),
                ]
            rows.append([
                self._title(g.arm),
                str(g.cut),
                human.percent(g.accuracy.mean, g.accuracy.sd),
                show_bytes(g.num_bytes),
                show_bytes(g.mean("bytes_up")),
                show_bytes(g.mean("bytes_down")),
                fewer[0],
                show_flops(g.mean("flops")),
                fewer[1],
                show_bytes(g.mean("peak_bytes")),
                ", ".join(str(entry["seed"]) for entry in g.entries),
            ])  # fmt: skip
        return table(titles, rows)

    def _targets(self, groups: Sequence[Group]) -> list[str]:
        """Return a line for each cut: what was to be reached, and whether it was."""
        wanted = self._recipe["targets"]
        lines = [
            f"Targets, against {self._title(self._recipe['baseline'])} at the same cut: at least "
            f"{wanted['times_fewer_bytes']} times fewer bytes, at least {wanted['times_fewer_flops']} "
            f"times fewer client FLOPs, at most {100 * wanted['margin']:g} points of accuracy less.",
            "",
        ]
        for g in groups:
            base = self._baseline(groups, g.cut)
            if g.arm == self._recipe["ours"] and base is not None:
                lines.append(f"- Cut {g.cut}: {_verdict(g, base, wanted)}")
        return lines

    def _tuning(self) -> list[str]:
        plan = self._recipe["tuning"]
        rows = []
        for model, arm in ((m, a) for m in self._recipe["models"] for a in plan["arms"]):
            keys = [(model, f"{arm}_cut{plan['cut']}~{r:g}", plan["seed"]) for r in plan["rates"]]
            found = [self._entries.get(key) for key in keys]
            if any(found):
                shown = [human.percent(e["accuracy"]) if e else human.NONE for e in found]
                rows.append([self._recipe["models"][model]["title"], self._title(arm), *shown])
        if not rows:
            return []
        titles = ["Model", "Arm", *(f"rate {rate:g}" for rate in plan["rates"])]
        text = f"Seed {plan['seed']}, cut {plan['cut']}, {plan['rounds']} epochs."
        return ["## Tuning", "", text, "", *table(titles, rows), ""]

    def _made(self) -> list[str]:
        made: dict[str, list[Entry]] = {}
        for entry in self._entries.values():
            names = ("trillium", "torch", "transformers", "peft")
            versions = [f"{n} {entry['versions'][n]}" for n in names if n in entry["versions"]]
            commit = (entry["git_sha"] or "unknown")[:10]
            how = f"{entry['device']}, {entry['dtype']}, {', '.join(versions)}, commit {commit}"
            made.setdefault(how, []).append(entry)
        lines = ["Made with:", ""]
        for how, entries in made.items():
            rows = f"{entries[0]['num_train']:,} training and {entries[0]['num_test']:,} test rows"
            lines.append(f"- {how}: {len(entries)} runs, {rows}")
        return lines


def _paired(own: Group, base: Group) -> tuple[Group, Group] | None:
    """Return both with the seeds that both have, whose rows are the same; None without any."""
    seeds = {e["seed"] for e in own.entries} & {e["seed"] for e in base.entries}
    if not seeds:
        return None
    first, second = (
        Group(g.arm, g.cut, [e for e in g.entries if e["seed"] in seeds]) for g in (own, base)
    )
    return first, second


def _verdict(own: Group, base: Group, wanted: Tree) -> str:
    pair = _paired(own, base)
    if pair is None:
        return "no seed in common"
    own, base = pair
    fewer_bytes = base.num_bytes / own.num_bytes
    fewer_flops = base.mean("flops") / own.mean("flops")
    lost = base.accuracy.mean - own.accuracy.mean
    seeds = "1 seed" if own.accuracy.num == 1 else f"{own.accuracy.num} seeds"
    checks = [
        (fewer_bytes >= wanted["times_fewer_bytes"], f"{_times(fewer_bytes)} fewer bytes"),
        (fewer_flops >= wanted["times_fewer_flops"], f"{_times(fewer_flops)} fewer FLOPs"),
        (lost <= wanted["margin"], f"{-100 * lost:+.1f} points over {seeds}"),
    ]
    return ", ".join(f"{text} **{'met' if is_met else 'not met'}**" for is_met, text in checks)


def _leaks(groups: Sequence[Group], title: Callable[[str], str]) -> list[str]:
    """Return what the activations of those arms give away in which it was measured."""
    rows = []
    for g in groups:
        found = next((entry["leakage"] for entry in g.entries if entry["leakage"]), None)
        if found:
            correlation = human.significant(found["distance_correlation"], 2)
            shares = [human.percent(found[name]) for name in list(ATTACKS)[:-1]]
            rows.append([title(g.arm), str(g.cut), *shares, correlation])
    if not rows:
        return []
    text = "What the activations of held-out texts give away (share of tokens; one seed):"
    return [text, "", *table(["Arm", "Cut", *ATTACKS.values()], rows), ""]


def entry_of(model: str, run: Run) -> Entry:
    """Return what is kept of a run; bytes and FLOPs are of a client, the mean over the clients."""
    assert run.traffic is not None
    last, total = run.evaluations[-1], run.traffic.until()
    return {
        "model": model,
        "label": run.arm,
        "seed": run.seed,
        "settings": {name: run.config[name] for name in SETTINGS},
        "accuracy": last["accuracy"],
        "f1": last["f1"],
        "loss": last["loss"],
        "train_loss": last["train_loss"],
        "leakage": last.get("leakage"),
        "bytes_up": total.bytes_up / run.num_clients,
        "bytes_down": total.bytes_down / run.num_clients,
        "kinds": {" ".join(k): v / run.num_clients for k, v in run.traffic.kinds.items()},
        "flops": per_client(total.flops, run),
        "peak_bytes": run.traffic.peak_bytes,
        "num_clients": run.num_clients,
        "num_train": sum(c["num_examples"] for c in run.data["clients"].values()),
        "num_test": run.data["test"]["num_examples"],
        "device": run.env["device"],
        "dtype": run.config["model"]["dtype"],
        "command": command(run.env["argv"]),
        "git_sha": run.env["git_sha"],
        "versions": run.env["versions"],
        "seconds": run.status["seconds"],
    }


def _key(entry: Entry) -> tuple[str, str, int]:
    return entry["model"], entry["label"], entry["seed"]


def _times(ratio: float) -> str:
    return f"{human.significant(ratio)}×"
