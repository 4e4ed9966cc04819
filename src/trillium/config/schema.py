"""The JSON Schema of recipes, for editors: made from the types that check a configuration.

It knows keys, types, bounds and components; what contradicts what is found when a recipe is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import core_schema

from trillium.component import CHOSEN, Component, known
from trillium.config.comparison import OWN_KEYS, CompareConfig
from trillium.config.experiment import ExperimentConfig
from trillium.config.meanings import meanings, summary

Schema = dict[str, Any]
SHIPPED: Final = Path(__file__).with_name("recipe.schema.json")
HINT: Final = "# yaml-language-server: $schema="  # before the place of the schema, in a first line
_KIND: Final = "of_kind"  # stands for a component, until all kinds are known
_SWEEP: Final[Schema] = {"anyOf": [{"type": "array", "minItems": 1}, {"type": "object"}]}
_BESIDE: Final[Mapping[str, Schema]] = {
    "grid": {
        "description": "Settings with several values, by path: each arm becomes one for each value.",
        "type": "object",
        "additionalProperties": _SWEEP,
    },
}
_TOLD: Final = {"description": "Of `trillium plan` alone: docs/plan.md.", "type": "object"}


def recipe_schema() -> Schema:
    """Return the schema of recipes: of one run, or of a comparison with `arms`."""
    made = _Made()
    run, comparison = made.of(ExperimentConfig), made.of(CompareConfig)["properties"]
    run["title"] = "The settings of a run"
    arm = {"anyOf": [{"$ref": "#/$defs/Run"}, {"type": "null"}]}
    own: Schema = {key: comparison[key] for key in OWN_KEYS if key in comparison}
    own["arms"] = {**own["arms"], "additionalProperties": arm}
    definitions = {"Run": run, **made.definitions()}
    definitions["Places"]["properties"] |= {"data": _TOLD}
    tuning = definitions["Tuning"]["properties"]
    tuning["grid"] = {**tuning["grid"], "additionalProperties": _SWEEP}
    tuning["settings"] = {"$ref": "#/$defs/Run", "description": tuning["settings"]["description"]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A recipe of Trillium",
        "description": "The settings of one run; with `arms`, of a comparison.",
        "type": "object",
        "properties": {**run["properties"], **own, **_BESIDE},
        "additionalProperties": False,
        "dependentRequired": {key: ["arms"] for key in ("seeds", "tuning", "about", "reach")},
        "$defs": dict(sorted(definitions.items())),
    }


def as_text(schema: Schema) -> str:
    """Return a schema as it is shipped."""
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


class _Made:
    """The schemas of models, and of the kinds of components that these have."""

    def __init__(self) -> None:
        self._definitions: Schema = {}
        self._kinds: dict[str, type[Component]] = {}

    def of(self, model: type[BaseModel]) -> Schema:
        """Return the schema of a model; what it refers to is among the definitions."""
        made = model.model_json_schema(schema_generator=_generator(self._kinds))
        for name, definition in made.pop("$defs", {}).items():
            self._definitions[name] = _resolved(definition)
        found: Schema = _resolved(made)
        return found

    def definitions(self) -> Schema:
        """Return all that schemas refer to, the kinds of components with all their members."""
        done: set[str] = set()
        while left := self._kinds.keys() - done:
            for name in sorted(left):
                self._definitions |= self._choices(name)
                done.add(name)
        return self._definitions

    def _choices(self, kind: str) -> Schema:
        """Return the definitions of a kind: a name, or options with or without one.

        Options without a name are laid over the component that is chosen already, which in a list is
        none.
        """
        members, found, options = known(self._kinds[kind]), {}, dict[str, list[Schema]]()
        for name, member in members.items():
            schema = self.of(member)
            own = schema.get("properties", {})
            schema |= {
                "title": f"{kind}: {name}",
                "properties": {"name": {"const": name}, **own},
                "required": ["name"],
            }
            found[f"{kind}.{name}"] = schema
            for key, option in own.items():
                if option not in options.setdefault(key, []):
                    options[key].append(option)
        named = [{"$ref": f"#/$defs/{kind}.{name}"} for name in members]
        anonymous = {
            "title": f"options of the {kind} that is chosen already",
            "type": "object",
            "properties": {
                key: forms[0] if len(forms) == 1 else {"anyOf": forms}
                for key, forms in sorted(options.items())
            },
            "additionalProperties": False,
        }
        of_names = {"title": f"a {kind} by its name", "enum": list(members)}
        return {
            **found,
            f"{kind}.named": {"oneOf": [of_names, *named]},
            kind: {"oneOf": [of_names, *named, anonymous]},
        }


def _generator(kinds: dict[str, type[Component]]) -> type[GenerateJsonSchema]:
    """Return what makes schemas, and notes the kinds of components that it meets."""

    class Generator(GenerateJsonSchema):
        def function_plain_schema(self, schema: core_schema.PlainValidatorFunctionSchema) -> Schema:
            kind: type[Component] = schema["metadata"][CHOSEN]
            kinds[kind.kind] = kind
            return {_KIND: kind.kind}

        def model_schema(self, schema: core_schema.ModelSchema) -> Schema:
            found, model = super().model_schema(schema), schema["cls"]
            said = meanings(model)
            found["description"] = summary(model)
            found.pop("required", None)  # what is laid over something else may be a part
            for name, field in model.model_fields.items():
                key = field.alias or name
                option = found["properties"][key]
                option.pop("title", None)
                if key in said and not said[key].startswith("See their"):
                    option["description"] = said[key]
                default = field.get_default()
                if isinstance(default, Component):
                    option["default"] = default.name
                elif isinstance(default, BaseModel):
                    option.pop("default", None)
            return found

    return Generator


def _resolved(node: Any, *, in_list: bool = False) -> Any:
    """Return a schema in which components are references to their kinds."""
    if isinstance(node, list):
        return [_resolved(item, in_list=in_list) for item in node]
    if not isinstance(node, dict):
        return node
    found = {key: _resolved(item, in_list=key == "items") for key, item in node.items()}
    kind = found.pop(_KIND, None)
    if isinstance(kind, str):
        found["$ref"] = f"#/$defs/{kind}.named" if in_list else f"#/$defs/{kind}"
    return found
