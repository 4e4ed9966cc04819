"""Write `docs/configuration.md`: every key of the experiment tree, read off the models themselves.

    python docs/generate_configuration.py

Types, bounds and defaults come from pydantic, meanings from the `Attributes:` sections of the
docstrings. A test fails when the page is not what this script would write.
"""

from __future__ import annotations

import inspect
import json
import re
import types
import typing
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from trillium.component import Component, known
from trillium.config.defaults import BY_TASK
from trillium.config.experiment import ExperimentConfig
from trillium.config.meanings import meanings, summary
from trillium.frameworks import Framework
from trillium.training.optimizers import Optimizer
from trillium.wire.codecs import Codec

PAGE = Path(__file__).with_name("configuration.md")
# These are taken in several places, codecs also by codecs, and are explained in one.
EXPLAINED: dict[type[BaseModel], str] = {Codec: "wire.up", Optimizer: "training.optimizer"}
OPENING = """\
# Configuration

<!-- Written by docs/generate_configuration.py. Edit the docstrings in src/, then run it. -->

After this page you can look up every setting, its type and its default, and write it in a recipe
or on the command line.

An experiment is one tree of keys. What you do not write keeps its default. There are three ways to
write a key, and they can be mixed; later ones win:

1. a recipe, a YAML file: `trillium new --to my.yaml`, then `trillium compare my.yaml`; a recipe
   without `arms` is for `trillium run`; `trillium new --list` says which recipes there are;
2. settings on the command line, dots between keys, values in YAML:
   `trillium compare my.yaml training.batch_size=8 data.partition=dirichlet`;
3. the short options `--model ID_OR_FOLDER` and `--data PATH_OR_HUB_ID`.

A recipe for `trillium compare` has one more key, `arms`: a label for each arm, and under it the keys
that this arm changes. What is beside `arms` holds for all of them:

```yaml
rounds: 5
data:
  partition: {name: dirichlet, alpha: 0.3}
arms:
  fedllm: {framework: fedllm}
  split: {framework: {name: split, cut: 2}}
```

On the command line, the label of an arm in front of a key changes that arm alone:
`trillium compare my.yaml training.batch_size=8 fedllm.adapter.r=4 --seeds 3`. Grids, tuning and the
other keys of a comparison are on a page of their own: [compare.md](compare.md).

A **component** (framework, adapter, codec, …) is written as its name, or as a mapping with its name
and its options: `partition: iid`, or `partition: {name: dirichlet, alpha: 0.3}`. Options of the
component that is already chosen can be set alone: `trillium run framework=split framework.cut=2`.
Naming another component replaces the whole one, options included. Lists are written in brackets:
`wire.up=[int8]`, or `'wire.up=[{name: cast, dtype: float16}]'` with its options. `null` switches off
what can be switched off: `training.max_grad_norm=null`. `LABEL` in a key is a label of your own.

A key that is set has an effect, or is refused with what to write instead. The tables say under which
frameworks, with their defaults, a key has no effect. In a comparison, an arm ignores a key that has no
effect in it, as long as the key has one in another arm.

Unknown keys, unknown names and values out of range are refused before anything is loaded. The tree
of a run, with every default filled in, is written to `config.yaml` in its run folder, and can be run
again as a recipe.

The first line of a recipe leads editors with a YAML language server to its JSON Schema: they complete
keys, say what they mean, and mark wrong ones. `trillium new` writes that line. `trillium schema` prints
the schema anew, with components of your own in it.

The machines and files of a deployment are not in this tree, so that the same recipe runs in one
process and on many machines: [deploy.md](deploy.md#a-run) says where they are set.
"""


def page() -> str:
    """Return the whole page."""
    return "\n".join([OPENING, *_by_task(), *_section("Top level", "", ExperimentConfig)])


def _by_task() -> Iterator[str]:
    """Yield the lines of the defaults that depend on the task."""
    yield "## Defaults by task\n"
    yield (
        "Of some keys the default depends on others. These values, too, stand in `config.yaml`, as the "
        "length does that the texts need (`training.max_length`); what you write wins. `trillium plan` "
        "warns of a setting that is far from what its task wants.\n"
    )
    yield "| key | default | under | because |"
    yield "|---|---|---|---|"
    for default in BY_TASK:
        under = ", ".join(
            f"`{path}={' or '.join(name for name in names if name)}`"
            for path, names in default.under.items()
        )
        value = json.dumps(default.value).replace('"', "")
        yield f"| `{default.path}` | `{value}` | {under} | {default.basis} |"
    yield ""


def _section(title: str, path: str, model: type[BaseModel]) -> Iterator[str]:
    """Yield the lines of a model's own keys, and then of the models and components under it."""
    yield f"## {title}\n"
    yield summary(model) + "\n"
    yield from _table(path, model)
    for key, field in model.model_fields.items():
        below = f"{path}.{key}" if path else key
        place, found = _place(below, field)
        if found is None or not place.startswith(below):
            continue
        if issubclass(found, Component):
            yield from _choices(place, found, field)
        else:
            yield from _section(f"`{place}`", place, found)


def _choices(
    path: str, kind: type[Component], field: FieldInfo, level: str = "##"
) -> Iterator[str]:
    """Yield the lines of all components of a kind; `level` is the heading's."""
    members = known(kind)
    yield f"{level} `{path}`\n"
    names = ", ".join(f"`{name}`" for name in members)
    if _is_list(field.annotation):
        yield f"A list of {kind.kind}s, applied in order; empty by default. There are: {names}.\n"
    else:
        yield f"One {kind.kind}: {names}. Default: {_default(field)}.\n"
    for name, member in members.items():
        yield f"{level}# `{path}: {name}`\n"
        yield summary(member) + "\n"
        yield from _table(path, member)
        for key, option in member.model_fields.items():
            place, found = _place(f"{path}.{key}", option)
            if found is not None and issubclass(found, Component) and place == f"{path}.{key}":
                yield from _choices(place, found, option, f"{level}##")
            elif found is not None and place == f"{path}.{key}":
                yield f"{level}## `{place}`\n"
                yield summary(found) + "\n"
                yield from _table(place, found)


def _table(path: str, model: type[BaseModel]) -> Iterator[str]:
    """Yield a table of a model's fields, or one line where it has none."""
    if not model.model_fields:
        yield "No options.\n"
        return
    yield "| key | type | default | meaning |"
    yield "|---|---|---|---|"
    said = meanings(model)
    for name, field in model.model_fields.items():
        key = field.alias or name
        full = f"{path}.{key}" if path else key
        meaning = said[key]
        place, found = _place(full, field)
        if found is not None:
            remark = "" if meaning.startswith("See their") else f"{meaning} "
            where = "below" if place.startswith(full) else f"`{place}`"
            anchor = re.sub(r"[^\w-]", "", place).lower()
            meaning = f"{remark}See [{where}](#{anchor})."
        if idle := _idle(full):
            meaning += f" No effect under {', '.join(f'`{name}`' for name in idle)}."
        default = _default(field)
        chosen = (getattr(model, "name", ""),)
        if any(
            own.path in (full, f"{full}.lr") and chosen[0] in own.under.get(path, chosen)
            for own in BY_TASK
        ):
            default += ", or [by task](#defaults-by-task)"
        cells = [f"`{full}`", _type(field), default, meaning]
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    yield ""


@cache
def _unread() -> dict[str, list[str]]:
    """Return, by framework as it is by default, the patterns of settings that it never reads."""
    found = {}
    for name in known(Framework):
        config = ExperimentConfig(framework=name)
        patterns = [*config.framework.no_effect(config)]
        crosses = {way for way, _ in config.framework.crossings(config) or ()}
        patterns += [f"*.{way}" for way in ("up", "down") if way not in crosses]
        found[name] = patterns
    return found


def _idle(path: str) -> list[str]:
    """Return the frameworks that do not read a setting; where codecs have nothing to do, theirs too."""
    path = path.replace(".LABEL", ".*")
    if path.startswith(("tiers.*.link", "plan.")):
        return []
    return [
        name
        for name, patterns in _unread().items()
        if any(
            fnmatchcase(path, pattern)
            or (not pattern.startswith("*") and fnmatchcase(path, f"{pattern}.*"))
            for pattern in patterns
        )
    ]


def _place(path: str, field: FieldInfo) -> tuple[str, type[BaseModel] | None]:
    """Return what a field takes, if that has options, and the path under which they are explained."""
    annotation = field.annotation
    if (labelled := _labelled(annotation)) is not None:
        return f"{path}.LABEL", labelled
    found = _component(annotation) or _model(_without_null(annotation))
    return (path if found is None else EXPLAINED.get(found, path)), found


def _type(field: FieldInfo) -> str:
    bounds: list[str] = []
    for item in field.metadata:
        for kind, sign in (
            (annotated_types.Ge, "≥"),
            (annotated_types.Gt, ">"),
            (annotated_types.Le, "≤"),
            (annotated_types.Lt, "<"),
        ):
            if isinstance(item, kind):
                bounds.append(f"{sign} {getattr(item, kind.__name__.lower())}")
    name, null, _ = _type_name(field.annotation).partition(" or `null`")
    return f"{name} {', '.join(bounds)}".strip() + null


def _type_name(annotation: Any) -> str:
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type_name(args[0])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type_name(arg) for arg in args)
    if origin is typing.Literal:
        return " or ".join(f"`{arg}`" for arg in args)
    if origin is tuple:
        return f"list of {_type_name(args[0])}"
    if origin is dict:
        return f"mapping of {_type_name(args[0])} to {_type_name(args[1])}"
    if annotation is type(None):
        return "`null`"
    if inspect.isclass(annotation) and issubclass(annotation, Component):
        return annotation.kind
    if (model := _model(annotation)) is not None:
        return "optimiser" if model is Optimizer else "mapping"
    return {str: "text", int: "integer", float: "number", bool: "`true` or `false`"}.get(
        annotation, getattr(annotation, "__name__", str(annotation)).lower()
    )


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    return _value(field.get_default(call_default_factory=True))


def _value(value: object) -> str:
    if isinstance(value, Component):
        return f"`{value.name}`"
    if isinstance(value, Optimizer):
        return f"`{{name: {value.name}, lr: {value.lr}}}`"
    if isinstance(value, BaseModel):
        return ""
    if isinstance(value, tuple):
        return f"`{_listed(value)}`"
    if value is None or isinstance(value, bool):
        return {None: "`null`", True: "`true`", False: "`false`"}[value]
    return f"`{value}`"


def _listed(value: object) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(_listed(item) for item in value) + "]"
    return value.name if isinstance(value, Component) else str(value)


def _without_null(annotation: Any) -> Any:
    """Return the type that a field takes where it is not `null`."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)[0]
    return annotation


def _component(annotation: Any) -> type[Component] | None:
    """Return the kind of component that a field takes, alone or in a list."""
    annotation = _without_null(annotation)
    if typing.get_origin(annotation) in (typing.Annotated, tuple):
        return _component(typing.get_args(annotation)[0])
    is_component = inspect.isclass(annotation) and issubclass(annotation, Component)
    return annotation if is_component else None


def _is_list(annotation: Any) -> bool:
    return typing.get_origin(annotation) is tuple


def _labelled(annotation: Any) -> type[BaseModel] | None:
    """Return the pydantic model that a field takes under labels of the user's own."""
    return _model(typing.get_args(annotation)[1]) if typing.get_origin(annotation) is dict else None


def _model(annotation: Any) -> type[BaseModel] | None:
    """Return the pydantic model that a field takes, if it takes one and nothing else."""
    is_model = inspect.isclass(annotation) and issubclass(annotation, BaseModel)
    return annotation if is_model else None


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
