"""What the models said of the held-out rows: class by class, which were confused, some answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trillium.report.read import Run
from trillium.report.summary import Row

_PAIRS = 8  # of confused classes, of an arm


@dataclass(frozen=True)
class ClassResult:
    """How a class of the held-out rows fared, as shares; `None` where nothing is counted."""

    label: str
    num_rows: int
    recall: float | None
    precision: float | None
    f1: float | None


@dataclass(frozen=True)
class Confused:
    """Rows of one class that were taken for another; of how many rows of the class."""

    label: str
    taken_for: str
    times: int
    num_rows: int


@dataclass(frozen=True)
class Classes:
    """The classes of an arm, the worst first, and the pairs that it confused most."""

    arm: str
    num_seeds: int
    results: list[ClassResult]
    confused: list[Confused]


def classes(rows: Sequence[Row]) -> list[Classes]:
    """Return the arms whose models' answers are known, with the sums over their seeds."""
    return [found for row in rows if (found := _classes(row)) is not None]


def _classes(row: Row) -> Classes | None:
    sums: Counter[tuple[str, str]] = Counter()
    runs = [run for run in row.counted if _confusion(run)]
    for run in runs:
        sums.update(_confusion(run))
    if not sums:
        return None
    rows_of: Counter[str] = Counter()
    taken: Counter[str] = Counter()
    for (label, said), times in sums.items():
        rows_of[label] += times
        taken[said] += times
    results = []
    for label in {**dict.fromkeys(rows_of), **dict.fromkeys(taken)}:
        hits = sums[label, label]
        results.append(
            ClassResult(
                label,
                rows_of[label],
                hits / rows_of[label] if rows_of[label] else None,
                hits / taken[label] if taken[label] else None,
                2 * hits / (rows_of[label] + taken[label]),
            )
        )
    results.sort(key=lambda found: (found.f1 or 0.0, found.label))
    wrong = [(pair, times) for pair, times in sums.items() if pair[0] != pair[1]]
    wrong.sort(key=lambda found: (-found[1], found[0]))
    confused = [Confused(*pair, times, rows_of[pair[0]]) for pair, times in wrong[:_PAIRS]]
    return Classes(row.arm, len(runs), results, confused)


def _confusion(run: Run) -> dict[tuple[str, str], int]:
    """Return how often a class was taken for which, by their labels; nothing where it is not known."""
    labels = [str(label) for label in run.data.get("labels") or []]
    found: dict[tuple[str, str], int] = {}
    for entry in _list(run.answers.get("confusion")):
        if not (
            isinstance(entry, list) and len(entry) == 3 and all(isinstance(x, int) for x in entry)
        ):
            return {}
        label, said, times = entry
        if not (0 <= label < len(labels) and 0 <= said < len(labels)):
            return {}
        found[labels[label], labels[said]] = times
    return found


@dataclass(frozen=True)
class Answer:
    """What the model of an arm answers; the name of its client, where each client has its own."""

    arm: str
    text: str
    client: str


@dataclass(frozen=True)
class Text:
    """A prompt, what is meant, and what the model of each arm answers."""

    prompt: str
    reference: str
    answers: list[Answer]


def texts(rows: Sequence[Row]) -> list[Text]:
    """Return some prompts with their answers; of the first run of each arm that counts."""
    found: dict[tuple[str, str], list[Answer]] = {}
    for row in rows:
        said = row.counted[0].answers
        for entry in _list(said.get("texts")):
            if isinstance(entry, dict):
                key = (str(entry.get("prompt", "")), str(entry.get("reference", "")))
                answer = Answer(row.arm, str(entry.get("answer", "")), str(said.get("client", "")))
                found.setdefault(key, []).append(answer)
    return [Text(*key, answers) for key, answers in found.items()]


def decoding(rows: Sequence[Row]) -> str:
    """Return how the answers were written."""
    tasks = [row.counted[0].config.get("task") for row in rows]
    own = any(isinstance(task, dict) and task.get("decoding") == "checkpoint" for task in tasks)
    return "as the checkpoint's generation_config says" if own else "greedily"


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
