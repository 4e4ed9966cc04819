"""What somebody asks for, on the command line or in Python: a recipe, and settings laid over it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel

from trillium.component import Component
from trillium.config.experiment import (
    Tree,
    found_recipe,
    merge,
    parse_overrides,
    read_yaml,
    recipe_path,
)
from trillium.config.sweep import Sweep, divide
from trillium.errors import UserError

Recipe = str | Path | Mapping[str, Any] | BaseModel
"""The file of a recipe, the name of one that comes with Trillium, its content, or a configuration."""

Settings = str | Mapping[str, Any]
"""A word such as `adapter.r=4`, or a mapping, whose keys may have dots."""

FILES: Final = (".txt", ".gz", ".zip", ".xls", ".xlsx", ".feather", ".arrow")  # no hub id ends so


_REFUSED: Final = {
    "multi_label": ("kd_frugal",),
    "regression": ("kd_frugal",),
    "preference": ("kd", "kd_frugal", "split_frugal"),
}
"""Arms of the default comparison that cannot train on a task, by its name."""


@dataclass(frozen=True)
class Asked:
    """A recipe, and what is laid over it.

    Attributes:
        name: how the recipe was named.
        recipe: its content; `None` where none was named.
        tree: the settings.
        sweeps: settings with several values, where these are divided.
    """

    name: str
    recipe: Tree | None
    tree: Tree
    sweeps: tuple[Sweep, ...] = ()

    def single(self) -> Tree:
        """Return the settings of one run.

        Raises:
            UserError: the recipe is a comparison.
        """
        if "arms" in (self.recipe or {}):
            raise UserError(
                self.name,
                "it has arms, so it is a comparison",
                f"Write: trillium compare {self.name}",
            )
        return merge(self.recipe or {}, self.tree)


def asked(
    recipe: Recipe | None,
    settings: Sequence[Settings],
    named: Mapping[str, Any],
    *,
    sweeps: bool = False,
) -> Asked:
    """Return what is asked for.

    Args:
        recipe: or the first of the settings, if it is a word with `=`.
        settings: in their order, later ones over earlier ones.
        named: settings by keyword, over all of these: `training__batch_size` is
            `training.batch_size`. The name of a model or of data is laid below them.
        sweeps: whether a word with several values, `adapter.r=4,8`, stands for several arms.

    Raises:
        UserError: there is no such recipe, or something is no setting.
    """
    if isinstance(recipe, str) and "=" in recipe:
        settings = [recipe, *settings]
        recipe = None
    if not sweeps:
        return Asked(*_read(recipe), laid(settings, named))
    words, found = list[Settings](), list[Sweep]()
    for one in settings:
        plain, several = divide([one]) if isinstance(one, str) else ([], [])
        words += plain if isinstance(one, str) else [one]
        found += several
    return Asked(*_read(recipe), laid(words, named), tuple(found))


def default_comparison(tree: Tree) -> Tree:
    """Return the recipe of a comparison where none is named: `compare`, or `compare-llm` by the task.

    Args:
        tree: the settings that are laid over it. What suits the recipe's own data and model alone goes
            where others are named: the size of the public set and, of language models, the learning
            rate and soft labels of all classes; which blocks have adapters. Arms that cannot train on
            the task are left out.
    """
    task = tree.get("task")
    name = task.get("name") if isinstance(task, Mapping) else task
    writes = name in ("causal_lm", "preference")
    found = read_yaml(recipe_path("compare-llm" if writes else "compare"))
    if name in ("regression", "token_classification"):
        found["data"]["partition"] = "iid"  # by class, otherwise
    if name == "regression":
        found["arms"]["kd"]["framework"].pop("temperature")
    for label in _REFUSED.get(str(name), ()):
        del found["arms"][label]
    data, model = tree.get("data"), tree.get("model")
    other_data = isinstance(data, Mapping) and "source" in data
    other_model = isinstance(model, Mapping) and "id" in model
    if other_data:
        found["data"].pop("public_size")
    if other_model:
        found["adapter"].pop("layers")
    if writes and (other_data or other_model):
        found["training"].pop("optimizer")
        found["arms"].get("kd", {}).pop("wire", None)
    return found


def laid(settings: Sequence[Settings], named: Mapping[str, Any]) -> Tree:
    """Return settings as one tree; see `asked`."""
    tree: Tree = {}
    model, data = named.get("model"), named.get("data")
    if isinstance(model, str | Path):
        tree = merge(tree, {"model": {"id": str(model)}})
    if isinstance(data, str | Path):
        tree = merge(tree, {"data": {"source": source_of(str(data))}})
    for one in settings:
        over = parse_overrides([one]) if isinstance(one, str) else _nested(one, ".")
        tree = merge(tree, over)
    rest = {
        key: value
        for key, value in named.items()
        if not (key in ("model", "data") and isinstance(value, str | Path))
    }
    return merge(tree, _nested(rest, "__"))


def source_of(data: str) -> dict[str, str]:
    """Return the source that the name of a file, of a folder or of a dataset on the hub stands for."""
    from trillium.data.sources.files import is_table

    if is_table(Path(data)) or Path(data).is_file() or Path(data).suffix.lower() in FILES:
        return {"name": "files", "train": data}
    return {"name": "hub", "path": data}


def _read(recipe: Recipe | None) -> tuple[str, Tree | None]:
    if recipe is None:
        return "no recipe", None
    if isinstance(recipe, BaseModel):
        return "the configuration", _plain(recipe)
    if isinstance(recipe, Mapping):
        return "the recipe", _nested(recipe, ".")
    return str(recipe), read_yaml(found_recipe(str(recipe)))


def _nested(settings: Mapping[str, Any], dot: str) -> Tree:
    """Return settings whose keys may be paths as a tree."""
    tree: Tree = {}
    for path, value in settings.items():
        keys = str(path).replace(dot, ".").split(".")
        if not all(keys):
            raise UserError(
                f"{path}={value!r}",
                "a part of the path is empty",
                f"Write the keys with {dot!r} between them, such as training{dot}batch_size",
            )
        over = _plain(value)
        for key in reversed(keys):
            over = {key: over}
        tree = merge(tree, over)
    return tree


def _plain(value: Any) -> Any:
    """Return a value as it would stand in a recipe."""
    if isinstance(value, Component):
        return value.to_config()
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value
