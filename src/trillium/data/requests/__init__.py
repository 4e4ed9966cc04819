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
    """What a customer can want, and how it is said.

    Attributes:
        name: the label.
        area: the file the intent is from; asides never come from the request's own area.
        asides: clauses that name the matter as settled.
        phrasings: templates by split, `train` and `test`.
    """

    name: str
    area: str
    asides: tuple[str, ...]
    phrasings: dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Words:
    """Slot values, and small talk by split and place (`openers`, `closers`, `before`, `after`)."""

    slots: dict[str, tuple[str, ...]]
    talk: dict[str, dict[str, tuple[str, ...]]]


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
    words = _read("words")
    talk = {
        split: {place: tuple(texts) for place, texts in words[split].items()}
        for split in ("train", "test")
    }
    slots = {slot: tuple(values) for slot, values in words["slots"].items()}
    return tuple(sorted(intents, key=lambda intent: intent.name)), Words(slots, talk)


def _read(name: str) -> dict[str, Any]:
    import yaml

    text = files(__package__).joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    content: dict[str, Any] = yaml.safe_load(text)
    return content
