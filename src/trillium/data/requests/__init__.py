"""The grammar of the built-in requests: one YAML file per area of service, and `words.yaml`.

A phrasing is a template: `(a|b)` is a choice, `{amount}` a slot. Phrasings under `train` and
`test` say the same with other words. An `aside` names the intent's matter as one that is settled;
requests of other areas mention it beside what they want.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any


@dataclass(frozen=True)
class Intent:
    """What a customer can want, its area (asides come from others), and how it is said, by split."""

    name: str
    area: str
    asides: tuple[str, ...]
    phrasings: dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Words:
    """Slot values, in which `{n}` is a number, and what may stand around a request."""

    slots: dict[str, tuple[str, ...]]
    openers: tuple[str, ...]
    closers: tuple[str, ...]
    before: tuple[str, ...]
    after: tuple[str, ...]


@cache
def load_grammar() -> tuple[tuple[Intent, ...], Words]:
    """Return all intents, sorted by name, and the words they are dressed with."""
    intents: list[Intent] = []
    for area in ("account", "cards", "money", "shop", "telecom"):
        intents += [
            Intent(
                name,
                area,
                tuple(entry["aside"]),
                {split: tuple(entry[split]) for split in ("train", "test")},
            )
            for name, entry in _read(area).items()
        ]
    entries = _read("words")
    words = Words(
        slots={slot: tuple(values) for slot, values in entries["slots"].items()},
        openers=tuple(entries["openers"]),
        closers=tuple(entries["closers"]),
        before=tuple(entries["before"]),
        after=tuple(entries["after"]),
    )
    return tuple(sorted(intents, key=lambda intent: intent.name)), words


def _read(name: str) -> dict[str, Any]:
    import yaml

    text = files(__package__).joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    content: dict[str, Any] = yaml.safe_load(text)
    return content
