"""Configurations as YAML with the lines marked in which the arms differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

Path = tuple[str, ...]
_MISSING = object()
# A run per seed is the point of a comparison, not a difference between its arms.
_IGNORED: frozenset[Path] = frozenset({("seed",)})


def differing_paths(configs: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Return the paths of all values that are not the same in every config, in their order."""
    leaves = [dict(_leaves(config)) for config in configs]
    paths = dict.fromkeys(path for found in leaves for path in found)
    return [
        path
        for path in paths
        if path not in _IGNORED
        and any(found.get(path, _MISSING) != leaves[0].get(path, _MISSING) for found in leaves)
    ]


def value_at(config: Mapping[str, Any], path: Path) -> str:
    """Return the value at a path as text, empty where there is none."""
    value = dict(_leaves(config)).get(path, "")
    return value if isinstance(value, str) else yaml.safe_dump(value).removesuffix("...\n").strip()


def has(config: Mapping[str, Any], path: Path) -> bool:
    """Whether there is a value at a path."""
    return path in dict(_leaves(config))


def marked_yaml(config: Mapping[str, Any], differing: Sequence[Path]) -> list[tuple[str, bool]]:
    """Return the lines of a config as YAML, each with whether it holds a value that differs."""
    text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
    marked: set[int] = set()
    wanted = set(differing)
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    for path, first, last in _node_leaves(node, ()):
        if path in wanted:
            marked.update(range(first, last + 1))
    return [(line, index in marked) for index, line in enumerate(text.splitlines())]


def _leaves(value: object, path: Path = ()) -> Iterator[tuple[Path, object]]:
    """Yield every scalar (and every empty mapping or list) with its path."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _leaves(item, (*path, str(key)))
    elif isinstance(value, list) and value:
        for index, item in enumerate(value):
            yield from _leaves(item, (*path, str(index)))
    else:
        yield path, value


def _node_leaves(node: yaml.Node | None, path: Path) -> Iterator[tuple[Path, int, int]]:
    """Yield the same leaves of parsed YAML with the first and last line on which they stand."""
    if isinstance(node, yaml.MappingNode) and node.value:
        for key, item in node.value:
            yield from _node_leaves(item, (*path, str(key.value)))
    elif isinstance(node, yaml.SequenceNode) and node.value:
        for index, item in enumerate(node.value):
            yield from _node_leaves(item, (*path, str(index)))
    elif node is not None:
        first, last = node.start_mark.line, node.end_mark.line
        # A block scalar ends at the start of the line after it.
        yield path, first, last - 1 if last > first and node.end_mark.column == 0 else last
