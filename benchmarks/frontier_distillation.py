"""What a frontier benchmark tells of distillation: bytes by kind, and how good the teachers were."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from frontier_markdown import table
from trillium.report import human
from trillium.report.measures import show_bytes
from trillium.report.summary import Stat

if TYPE_CHECKING:
    from frontier_results import Entry, Results

_HEAD = ("up statistics", "down statistics", "down snapshot")
_SHOWN = (*_HEAD, "up logits", "down logits")


def distillation(results: Results, partition: str, arms: Iterable[str]) -> list[str]:
    """Return a table of those arms that exchanged soft labels, if any."""
    rows = []
    for arm in arms:
        entries = results.of_arm(partition, arm)
        if any("up logits" in entry.get("kinds", {}) for entry in entries):
            rows.append([results.title(arm), *_bytes(entries), *_teachers(entries)])
    if not rows:
        return []
    titles = ["Arm", "Public texts", "Head", "Soft labels up", "Teacher down", "Control", "In all",
              "Clients on public texts", "Teacher, first round", "Teacher, last round"]  # fmt: skip
    text = (
        "Bytes of a client after the last round by kind, and how often a client's prediction and the "
        "teacher name the class of a public text, which nobody but this benchmark looks at:"
    )
    return [text, "", *table(titles, rows), ""]


def _bytes(entries: Sequence[Entry]) -> list[str]:
    def mean(*names: str) -> float:
        return sum(float(e["kinds"].get(n, 0.0)) for e in entries for n in names) / len(entries)

    once = sum(entry["bytes_once"] for entry in entries) / len(entries)
    control = mean(*{kind for entry in entries for kind in entry["kinds"]} - {*_SHOWN})
    found = [once, mean(*_HEAD), mean("up logits"), mean("down logits"), control]
    return [show_bytes(value) if value else human.NONE for value in (*found, sum(found))]


def _teachers(entries: Sequence[Entry]) -> list[str]:
    def shown(name: str, place: int) -> str:
        stat = Stat.of(entry["teachers"][place][name] for entry in entries)
        return human.NONE if stat is None else human.percent(stat.mean, stat.sd)

    return [shown("clients", -1), shown("teacher", 0), shown("teacher", -1)]
