"""What is wrong with a configuration, in the words of whoever wrote it."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ValidationError

from trillium.component import Component, known
from trillium.errors import UserError, suggest

# What other tools, or earlier versions, call a setting, and what it is called here.
ALIASES: Final = {
    "learning_rate": "lr",
    "epochs": "local_epochs",
    "num_epochs": "local_epochs",
    "num_train_epochs": "local_epochs",
    "steps": "local_steps",
    "max_steps": "local_steps",
    "per_device_train_batch_size": "batch_size",
    "rank": "r",
    "lora_r": "r",
    "lora_rank": "r",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "num_rounds": "rounds",
    "clients": "num_clients",
    "model_name": "id",
    "model_name_or_path": "id",
    "optim": "optimizer",
    "per_device_eval_batch_size": "batch_tokens",
    "evaluation.batch_size": "batch_tokens",
    "gradient_accumulation_steps": "micro_batch_size",
    "bf16": "autocast",
    "lr_scheduler_type": "schedule",
    "warmup_ratio": "warmup",
    "warmup_steps": "warmup",
    "text_column": "text",
    "label_column": "label",
    "file": "train",
    "files": "train",
    "data_files": "train",
    "train_file": "train",
    "test_file": "test",
}
# What pydantic calls a value of the wrong form: why it cannot be, and what to write.
FORMS: Final = {
    "int": ("it is not a whole number", "Write a whole number"),
    "float": ("it is not a number", "Write a number"),
    "finite": ("it is not a number", "Write a number"),
    "bool": ("it is neither true nor false", "Write true or false"),
    "string": ("it is not a text", "Write a text; quotes make one of a number"),
    "path": ("it is not a path", "Write the path of a file"),
    "tuple": ("it is not a list", "Write [one, another]"),
    "list": ("it is not a list", "Write [one, another]"),
}
BOUNDS: Final = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
DEPTH: Final = 4  # levels of settings that are looked through for a key


def explained(error: ValidationError, tree: Mapping[str, Any], root: BaseModel) -> UserError:
    """Turn what pydantic found in a tree into one error for the user.

    Args:
        root: the defaults of the tree.
    """
    # A key that there is not says more than the one that is missing in its place.
    first = min(error.errors(), key=lambda found: found["type"] == "missing")
    parts = _place(first["loc"], tree)
    where, value = ".".join(parts), first["input"]
    raised = first.get("ctx", {}).get("error")
    if isinstance(raised, UserError):
        given = raised.given if raised.given.startswith(where) else f"{where}: {raised.given}"
        is_close = raised.instead.startswith("Did you mean")
        if parts and parts[-1] == "source" and not is_close:
            return UserError(given, raised.why, _source(value) or raised.instead)
        return UserError(given, raised.why, raised.instead)
    given = f"{where}={value!r}"
    if first["type"] == "extra_forbidden":
        why = f"there is no setting {parts[-1]!r} there"
        return UserError(given, why, _meant(parts, value, tree, root))
    if first["type"] == "missing":
        return UserError(where, "it is not set", f"Write {where}=…")
    return UserError(given, *_why(first, where, value))


def _place(location: tuple[int | str, ...], tree: Mapping[str, Any]) -> list[str]:
    """Return the part of a location that the user has written; pydantic adds names of types."""
    parts: list[str] = []
    node: Any = tree
    for part in location:
        if isinstance(part, int):
            if not isinstance(node, list | tuple) or part >= len(node):
                break
            node = node[part]
        elif not isinstance(node, Mapping) or not re.fullmatch(r"[a-z]\w*", part):
            break
        else:
            node = node.get(part)
        parts.append(str(part))
    return parts


def _why(found: Any, where: str, value: object) -> tuple[str, str]:
    """Return why a value cannot be, and what to write."""
    kind, context = str(found["type"]), found.get("ctx", {})
    if kind in ("literal_error", "enum"):
        choices = re.findall(r"'([^']*)'", str(context.get("expected")))
        return "there is no such choice", suggest(str(value), choices)
    if kind.startswith(("model", "dict", "mapping", "dataclass")):
        return "these are several settings, not one value", _section(where, value)
    for name, words in BOUNDS.items():
        if name in context:
            return (
                f"it must be {words} {context[name]}",
                f"Write a number that is {words} {context[name]}",
            )
    for form, said in FORMS.items():
        if kind.startswith(form):
            return said
    text = str(found["msg"]).removeprefix("Value error, ").replace("Input should", "it should")
    return text[0].lower() + text[1:], "docs/configuration.md says what may be written there"


def _section(where: str, value: object) -> str:
    """Return what to write where one value was given for several settings."""
    last = where.rpartition(".")[2]
    if isinstance(value, str) and last == "model":
        return f"Write {where}.id={value}"
    if isinstance(value, str) and where == "data":
        return f"Write --data {value}"
    if isinstance(value, str) and last == "optimizer":
        return f"Write {where}.name={value}"
    return f"Write {where}.KEY=VALUE; docs/configuration.md has its keys"


def _source(value: object) -> str | None:
    """Return what to write where a file or a dataset was given for a kind of source."""
    from trillium.data.sources.files import is_table

    named = value.get("name") if isinstance(value, Mapping) else value
    if not isinstance(named, str):
        return None
    kind = "name: files, train" if is_table(Path(named)) else "name: hub, path"
    return f"Write --data {named}, or data.source={{{kind}: {named}}}"


def _meant(parts: list[str], value: object, tree: Mapping[str, Any], root: BaseModel) -> str:
    """Return what somebody has probably meant by a key that there is not."""
    key = ALIASES.get(".".join(parts), ALIASES.get(parts[-1], parts[-1]))
    beside = _siblings(parts, tree, root)
    if key in beside:
        return f"Did you mean {key!r}?"
    place = ".".join(parts[:-1])
    chosen = [f"{at}.{key} with {at}={name}" for at, name in _members(key, root) if at == place]
    standing = list(_of_defaults(key, root, ""))
    close = suggest(key, beside)
    if found := chosen or standing:
        return f"Did you mean {' or '.join(found[:3])}?"
    if not close.startswith("Did"):
        found = [f"{at}.{key} with {at}={name}" for at, name in _members(key, root)]
    return f"Did you mean {' or '.join(found[:3])}?" if found else close


def _siblings(parts: list[str], tree: Mapping[str, Any], root: BaseModel) -> list[str]:
    """Return the keys that exist beside an unknown one."""
    node: Any = root
    given: Any = tree
    for part in parts[:-1]:
        node = getattr(node, part, None)
        given = given.get(part) if isinstance(given, Mapping) else None
        if isinstance(node, Component) and isinstance(given, Mapping) and "name" in given:
            # Another one than the default: its own keys.
            return list(type(node).members[given["name"]].model_fields)
    return list(type(node).model_fields) if isinstance(node, BaseModel) else []


def _members(key: str, root: BaseModel) -> Iterator[tuple[str, str]]:
    """Yield where a component may be chosen that has a setting of this name, and that component."""
    for place, kind in _kinds(root, ""):
        for name, member in known(kind).items():
            if key in member.model_fields:
                yield place, name


def _of_defaults(key: str, node: BaseModel, place: str) -> Iterator[str]:
    if place.count(".") > DEPTH:
        return
    for name in type(node).model_fields:
        path, value = f"{place}{name}", getattr(node, name)
        if name == key and place:
            yield path
        if isinstance(value, BaseModel):
            yield from _of_defaults(key, value, f"{path}.")


def _kinds(node: BaseModel, place: str) -> Iterator[tuple[str, type[Component]]]:
    """Yield where components are chosen, and of which kind."""
    for name, field in type(node).model_fields.items():
        path, value = f"{place}{name}", getattr(node, name)
        types = (field.annotation, *typing.get_args(field.annotation))
        for found in types:
            if isinstance(found, type) and issubclass(found, Component) and found.package:
                yield path, found
        if isinstance(value, BaseModel):
            yield from _kinds(value, f"{path}.")
