"""Sweeps: one setting with several values, as arms of their own."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trillium.config.experiment import Tree, merge, parse_overrides
from trillium.errors import UserError

Sweep = tuple[str, tuple[Any, ...]]
"""The path of a setting, and its values."""


@dataclass(frozen=True)
class Settings:
    """A value that is several settings at once, under a label of its own."""

    label: str
    tree: Tree


def divide(words: Iterable[str]) -> tuple[list[str], list[Sweep]]:
    """Return the words with one value, and the settings with several: `adapter.r=1,4,8`.

    Commas within brackets or quotes belong to the value.
    """
    plain, sweeps = [], []
    for word in words:
        path, equals, text = word.partition("=")
        parts = _parts(text) if equals else [text]
        if len(parts) < 2:
            plain.append(word)
            continue
        values = []
        for part in parts:
            tree: Any = parse_overrides([f"{path}={part}"])
            for key in path.split("."):
                tree = tree[key]
            values.append(tree)
        sweeps.append((path, tuple(values)))
    return plain, sweeps


def grid(tree: Mapping[str, Any]) -> list[Sweep]:
    """Return the sweeps of a recipe: paths with lists of values, or names with settings by label.

    Raises:
        UserError: an entry is neither.
    """
    found: list[Sweep] = []
    for path, values in tree.items():
        if isinstance(values, list) and values:
            found.append((path, tuple(values)))
        elif isinstance(values, Mapping) and all(isinstance(v, Mapping) for v in values.values()):
            found.append((path, tuple(Settings(label, dict(v)) for label, v in values.items())))
        else:
            raise UserError(
                f"grid.{path}={values!r}",
                "it is neither a list of values nor a mapping from labels to settings",
                f"Write {path}: [one, another], or {path}: {{label: {{key: value}}}}",
            )
    return found


def expanded(arms: Mapping[str, Tree], sweeps: Sequence[Sweep]) -> dict[str, dict[str, Tree]]:
    """Return what sweeps make of each arm: one for each combination of values, by their labels.

    A path that begins with an arm's label is of that arm alone.

    Raises:
        UserError: two arms would have the same label.
    """
    found: dict[str, dict[str, Tree]] = {}
    for label, tree in arms.items():
        own = [
            (path.removeprefix(f"{label}."), values)
            for path, values in sweeps
            if path.split(".")[0] == label or path.split(".")[0] not in arms
        ]
        found[label] = {}
        for chosen in itertools.product(*(values for _, values in own)):
            pairs = list(zip((path for path, _ in own), chosen, strict=True))
            name = label + "".join(_ending(path, value) for path, value in pairs)
            if any(name in made for made in found.values()):
                raise UserError(
                    f"two arms called {name}",
                    "the last words of two settings are the same",
                    "Sweep one of them, and write arms for the other",
                )
            settings: Tree = {}
            for path, value in pairs:
                settings = merge(settings, _settings(path, value))
            found[label][name] = merge(tree, settings)
    return found


def swept(arms: Mapping[str, Tree], sweeps: Sequence[Sweep]) -> dict[str, Tree]:
    """Return all arms that sweeps make."""
    made = expanded(arms, sweeps).values()
    return {name: tree for trees in made for name, tree in trees.items()}


def curves(labels: Iterable[str], sweep: Sweep) -> dict[str, dict[float, str]]:
    """Return the labels of the arms that a sweep has made, by the arm and by value.

    Arms that it has not made are left out; where a value is no number, all are.
    """
    path, values = sweep
    found: dict[str, dict[float, str]] = {}
    if not all(type(value) in (int, float) for value in values):
        return found
    for label in labels:
        for value in values:
            if label.endswith(_ending(path, value)):
                found.setdefault(label.removesuffix(_ending(path, value)), {})[value] = label
    return found


def _settings(path: str, value: Any) -> Tree:
    """Return the settings that a value of a sweep stands for."""
    if isinstance(value, Settings):
        return value.tree
    for key in reversed(path.split(".")):
        value = {key: value}
    tree: Tree = value
    return tree


def _ending(path: str, value: Any) -> str:
    """Return what is added to the label of an arm whose setting has this value.

    Names speak for themselves; a number needs the last word of its path.
    """
    if isinstance(value, Settings):
        return f"_{_short(value.label)}"
    is_named = isinstance(value, str) or (isinstance(value, Mapping) and "name" in value)
    return f"_{_short(value)}" if is_named else f"_{path.split('.')[-1]}{_short(value)}"


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return "_".join(map(_short, value.values()))
    if isinstance(value, list | tuple):
        return "_".join(map(_short, value))
    return "".join(c if c.isalnum() or c in ".-" else "_" for c in str(value))


def _parts(text: str) -> list[str]:
    """Divide at commas outside of brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter in "[{(":
            depth += 1
        elif letter in "]})":
            depth -= 1
        elif letter == "," and not depth:
            parts.append("")
            continue
        parts[-1] += letter
    return parts
