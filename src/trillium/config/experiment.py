"""The experiment tree: defaults, YAML and key=value, checked as a whole before anything runs."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from trillium.component import Choice
from trillium.config.continued import with_adapters
from trillium.config.defaults import defaults_of, value_at
from trillium.config.explained import explained
from trillium.errors import UserError, suggest
from trillium.federation.setting import Setting
from trillium.frameworks import Framework
from trillium.frameworks.effects import NoEffect
from trillium.frameworks.fedllm.protocol import FedLLM
from trillium.frameworks.heads import Head
from trillium.frameworks.heads.random import Random

Tree = dict[str, Any]


class ExperimentConfig(Setting):
    """One run."""

    framework: Choice[Framework] = FedLLM()
    head: Choice[Head] = Random()

    @property
    def hides(self) -> bool:
        """Whether noise, a coin or a mask is to hide something, so that each side needs a secret."""
        return self.framework.hides or bool(self.privacy.unit) or self.sums.hides

    def tree(self) -> Tree:
        """Return the resolved configuration as plain values; it reads back to an equal one."""
        return self.model_dump(mode="json")


def experiment(tree: Mapping[str, Any]) -> ExperimentConfig:
    """Return the checked configuration of a tree laid over the defaults.

    Raises:
        UserError: a key is unknown, a value cannot be used, two settings contradict each other, or one
            acts nowhere in this run.
    """
    config, base = _checked(tree)
    for found in _idle(config, base):
        raise found
    return config


def acting(tree: Mapping[str, Any], own: Mapping[str, Any]) -> tuple[Tree, dict[str, NoEffect]]:
    """Return a tree without what acts nowhere in its run, and what that was, by path.

    For runs that share settings with others, in which these may act.

    Args:
        own: the part that is of this run alone: all of it must act.

    Raises:
        UserError: as `experiment`.
    """
    left, idle = copy.deepcopy(dict(tree)), dict[str, NoEffect]()
    while True:
        config, base = _checked(left)
        for found in _idle(config, base):
            if _holds(own, found.path) or not _holds(left, found.path):
                raise found
            _leave_out(left, found.path)
            idle[found.path] = found
            break
        else:
            return left, idle


def _holds(tree: Any, path: str) -> bool:
    """Whether a tree sets what stands at a path; the last part may be a place in a list."""
    for key in path.split("."):
        if isinstance(tree, list | tuple):
            return key.isdigit()
        if not isinstance(tree, Mapping) or key not in tree:
            return False
        tree = tree[key]
    return True


def _leave_out(tree: Any, path: str) -> None:
    """Remove what stands at a path."""
    *parents, last = path.split(".")
    for key in parents:
        tree = tree[key]
    del tree[int(last) if isinstance(tree, list) else last]


def _idle(config: ExperimentConfig, base: Tree) -> Iterator[NoEffect]:
    """Yield what is set and acts nowhere in a run, but for what is so by default."""
    tree = config.tree()
    for found in config.framework.without_effect(config):
        if value_at(tree, found.path) != value_at(base, found.path):
            yield found


def _checked(tree: Mapping[str, Any]) -> tuple[ExperimentConfig, Tree]:
    """Return the configuration of a tree, and what holds where the tree says nothing."""
    given = with_adapters(copy.deepcopy(dict(tree)))
    base = defaults_of(ExperimentConfig().tree(), given, merge)
    merged = _with_common(merge(base, given))
    try:
        config = ExperimentConfig.model_validate(merged)
    except ValidationError as error:
        raise explained(error, merged, ExperimentConfig()) from error
    config.data.check(config.task)
    config.framework.check(config)
    config.head.check(config)
    return config, base


def _with_common(tree: Tree) -> Tree:
    """Lay the models and adapters of tiers and server over those of the run."""
    tiers = tree["tiers"].values() if isinstance(tree["tiers"], Mapping) else ()
    for own in (tree["server"], *tiers):
        for key in ("model", "adapter"):
            if isinstance(own, dict) and own.get(key) is not None:
                own[key] = merge({key: tree[key]}, {key: own[key]})[key]
    return tree


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> Tree:
    """Return `base` with the values of `over`; a component of another name replaces the whole one."""
    result = copy.deepcopy(dict(base))
    for key, value in over.items():
        old = result.get(key)
        if isinstance(old, str) and isinstance(value, Mapping) and "name" not in value:
            old = {"name": old}
        if isinstance(old, Mapping) and isinstance(value, str) and old.get("name") == value:
            continue
        is_other = (
            isinstance(value, Mapping)
            and isinstance(old, Mapping)
            and ("name" in value and value["name"] != old.get("name"))
        )
        if isinstance(old, Mapping) and isinstance(value, Mapping) and not is_other:
            result[key] = merge(old, value)
        else:
            result[key] = copy.deepcopy(value)
    return result


class _Loader(yaml.SafeLoader):
    """Reads 1e-3 and 1.0e9 as numbers, and refuses a key that stands twice in a mapping.

    YAML 1.1 takes these numbers for text, for want of a dot or a sign. Of two keys PyYAML takes one.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping.

        Raises:
            ConstructorError: a key stands in it twice.
        """
        seen = dict[Any, int]()
        for found, _ in node.value:
            key, line = found.value, found.start_mark.line + 1
            if found.tag != "tag:yaml.org,2002:merge" and isinstance(key, str):
                if key in seen:
                    why = f"the key {key!r} stands there twice, in lines {seen[key]} and {line}"
                    raise yaml.constructor.ConstructorError(None, None, why)
                seen[key] = line
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def read_yaml(path: Path) -> Tree:
    """Return the mapping in a YAML file.

    Raises:
        UserError: there is no such file, or it holds no mapping.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        shipped = suggest(path.stem, recipes())
        close = f". {shipped}" if shipped.startswith("Did") else ""
        raise UserError(
            str(path),
            f"it cannot be read ({error.strerror})",
            f"Run `trillium new` to get a recipe{close}",
        ) from error
    except yaml.constructor.ConstructorError as error:
        raise UserError(str(path), str(error.problem), "Correct it there") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        first = " ".join(str(error).split())
        raise UserError(str(path), f"it is not YAML ({first})", "Correct it there") from error
    if not isinstance(content, dict):
        raise UserError(
            str(path), "a recipe is a mapping of keys to values", "Run `trillium new` to see one"
        )
    return content


_SIGNS = ("|", ">", "-", "?", ":")  # alone in YAML they begin something that is empty


def parse_overrides(words: Iterable[str]) -> Tree:
    """Turn `a.b=value` words, values in YAML, into a tree.

    Raises:
        UserError: a word has no key or an unreadable value.
    """
    tree: Tree = {}
    for word in words:
        path, equals, text = word.partition("=")
        keys = path.split(".")
        if not equals or not all(keys):
            raise UserError(
                word,
                "a setting is key=value, with dots between keys",
                "Write e.g. training.batch_size=8",
            )
        try:
            value: Any = text if text in _SIGNS else yaml.load(text, _Loader)
        except yaml.YAMLError as error:
            raise UserError(
                word, "the value is not YAML", "Quote it, or write lists as [a, b]"
            ) from error
        for key in reversed(keys):
            value = {key: value}
        tree = merge(tree, value)
    return tree


def recipes() -> dict[str, str]:
    """Return when to use each recipe that comes with Trillium: its second line.

    The first leads editors to the schema.
    """
    folder = Path(__file__).parent / "recipes"
    return {
        path.stem: path.read_text(encoding="utf-8").splitlines()[1].lstrip("# ")
        for path in sorted(folder.glob("*.yaml"))
    }


def found_recipe(word: str) -> Path:
    """Return the file of a recipe that is named by its path, or as those of Trillium are.

    Raises:
        UserError: it is a file of rows.
    """
    from trillium.data.sources.files import is_table

    path = Path(word)
    if path.suffix.lower() not in (".json", "") and is_table(path):
        raise UserError(word, "it is a file of rows, not a recipe", f"Write --data {word}")
    return recipe_path(word) if not path.exists() and word in recipes() else path


def recipe_path(name: str) -> Path:
    """Return the path of a recipe that comes with Trillium.

    Raises:
        UserError: there is none of that name.
    """
    folder = Path(__file__).parent / "recipes"
    known = {path.stem: path for path in folder.glob("*.yaml")}
    if name not in known:
        raise UserError(f"recipe {name!r}", "Trillium has none of that name", suggest(name, known))
    return known[name]
