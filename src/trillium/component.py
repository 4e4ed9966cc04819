"""A choice in the config is an object: a named, validated component of a kind.

A kind (aggregator, codec, framework, …) is a direct subclass of `Component` with a `kind` and the
`package` its members live in; a member is a subclass of the kind with a `name`::

    class Aggregator(Component, kind="aggregator", package="trillium…aggregators"): ...
    class TrimmedMean(Aggregator, name="trimmed_mean"):
        trim: float = 0.1

A config field typed `Choice[Aggregator]` then takes `trimmed_mean`, `{name: trimmed_mean, trim: 0.2}`
or the object itself. Other distributions add members through the entry-point group `trillium.<kind>`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import Annotated, Any, ClassVar, Final, TypeVar

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from trillium.errors import UserError, suggest


class Component(BaseModel):
    """One named choice of a kind; its fields are its options, its methods do the work."""

    # A class is built into a validator when it is first used: a command uses few of them.
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    kind: ClassVar[str] = ""
    package: ClassVar[str] = ""
    name: ClassVar[str] = ""
    members: ClassVar[dict[str, type[Component]]] = {}

    def __init_subclass__(
        cls, kind: str = "", package: str = "", name: str = "", **kwargs: Any
    ) -> None:
        """Take the class keywords; `__pydantic_init_subclass__` acts on them."""
        super().__init_subclass__(**kwargs)

    @classmethod
    def __pydantic_init_subclass__(
        cls, kind: str = "", package: str = "", name: str = "", **kwargs: Any
    ) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if kind:
            cls.kind, cls.package, cls.members = kind, package, {}
        if name:
            assert name not in cls.members, f"two {cls.kind}s are called {name!r}"
            cls.name = name
            cls.members[name] = cls

    def to_config(self) -> dict[str, Any]:
        """Return the plain form that `resolve` reads back: `{"name": …, **options}`."""
        return {"name": self.name, **self.model_dump(mode="json", by_alias=True)}


@cache
def _load_package(package: str, kind: str) -> None:
    """Import every module of a kind's package, so that its members are registered."""
    module = importlib.import_module(package)
    for info in pkgutil.iter_modules(getattr(module, "__path__", [])):
        importlib.import_module(f"{package}.{info.name}")
    for entry in _installed().select(group=f"trillium.{kind}"):
        entry.load()


@cache
def _installed() -> Any:  # another class in Python 3.11 than later, with the same method
    """Return what all distributions add to others; to look for it takes some milliseconds."""
    return entry_points()


def known(base: type[Component]) -> dict[str, type[Component]]:
    """Return all members of a kind by name, importing the files they live in."""
    _load_package(base.package, base.kind)
    return dict(sorted(base.members.items()))


C = TypeVar("C", bound=Component)


def resolve(base: type[C], value: object) -> C:
    """Turn `name`, `{name: …, options}` or a component into the component.

    Raises:
        UserError: the name is unknown or the value is of the wrong form.
        pydantic.ValidationError: an option is unknown or has a wrong value.
    """
    if isinstance(value, base):
        return value
    options: dict[str, Any] = {}
    if isinstance(value, Mapping) and isinstance(value.get("name"), str):
        options = {str(key): item for key, item in value.items() if key != "name"}
        value = value["name"]
    if not isinstance(value, str):
        raise UserError(
            f"{base.kind} {value!r}",
            f"a {base.kind} is a name or a mapping with a name",
            f"Write one of: {', '.join(known(base))}, or {{name: …, option: value}}",
        )
    members = known(base)
    if value not in members:
        raise UserError(
            f"{base.kind} {value!r}",
            f"there is no {base.kind} of that name",
            suggest(value, members),
        )
    found = members[value].model_validate(options)
    assert isinstance(found, base)
    return found


CHOSEN: Final = "trillium_kind"  # in the metadata of a field: which kind of component it takes


class _ChoiceSchema:
    """Teaches pydantic to validate a field with `resolve` and to dump it with `to_config`."""

    def __get_pydantic_core_schema__(
        self, source: type[Component], handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            lambda value: resolve(source, value),
            metadata={CHOSEN: source},
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda component: component.to_config()
            ),
        )


Choice = Annotated[C, _ChoiceSchema()]
