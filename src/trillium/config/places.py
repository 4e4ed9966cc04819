"""Paths in a configuration: written down, they count from nowhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel

from trillium.files import MayBePath

M = TypeVar("M", bound=BaseModel)


def located(config: M) -> M:
    """Return a configuration with whole paths in place of relative ones that lead somewhere."""
    changes = {}
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        marks = [*field.metadata, *_marks(field.annotation)]
        found = _located(value, any(isinstance(mark, MayBePath) for mark in marks))
        if found != value:
            changes[name] = found
    return config.model_copy(update=changes) if changes else config


def _marks(annotation: Any) -> list[Any]:
    """Return what the parts of a type are annotated with."""
    own = list(getattr(annotation, "__metadata__", ()))
    return own + [mark for part in get_args(annotation) for mark in _marks(part)]


def _located(value: Any, may_be_path: bool) -> Any:
    if isinstance(value, Path):
        return value.absolute() if value.exists() else value
    if isinstance(value, str) and may_be_path:
        return str(Path(value).absolute()) if Path(value).exists() else value
    if isinstance(value, BaseModel):
        return located(value)
    if isinstance(value, Mapping):
        return {key: _located(item, may_be_path) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_located(item, may_be_path) for item in value)
    return value
