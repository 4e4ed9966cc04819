"""What each arm has changed against the first, as a diff of their settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trillium.report.config_view import differing_paths, has, marked_yaml, value_at
from trillium.report.summary import Row


@dataclass(frozen=True)
class Change:
    """What an arm changes against another: lines of `-` or `+`, and a setting."""

    arm: str
    lines: list[tuple[str, str]]


def changed(rows: Sequence[Row]) -> list[Change]:
    """Return what every arm but the first changes against that one."""
    if len(rows) < 2:
        return []
    first = rows[0].counted[0].config
    return [Change(row.arm, _lines(first, row.counted[0].config)) for row in rows[1:]]


def _lines(first: dict[str, Any], other: dict[str, Any]) -> list[tuple[str, str]]:
    found = []
    for path in differing_paths([first, other]):
        name = ".".join(path)
        found += [
            (sign, f"{name}: {value_at(config, path)}")
            for sign, config in (("-", first), ("+", other))
            if has(config, path)
        ]
    return found


def configs(rows: Sequence[Row]) -> list[tuple[str, list[tuple[str, bool]]]]:
    """Return the configuration of each arm in lines, with whether the arms differ there."""
    found = [row.counted[0].config for row in rows]
    differing = differing_paths(found)
    return [(row.arm, marked_yaml(row.counted[0].config, differing)) for row in rows]
