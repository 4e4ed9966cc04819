"""What a plan is told, checked as the settings of a run are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from trillium.clock.places import Place
from trillium.errors import UserError, suggest
from trillium.plan.places import Planning


def planning_of(told: Mapping[str, Any]) -> Planning:
    """Return what a plan is told from plain values.

    Raises:
        UserError: a key is unknown, or a value cannot be used.
    """
    try:
        return Planning.model_validate(told)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(["plan", *map(str, first["loc"])])
        raised = first.get("ctx", {}).get("error")
        if isinstance(raised, UserError):
            raise UserError(f"{where}={raised.given}", raised.why, raised.instead) from error
        if first["type"] == "extra_forbidden":
            raise UserError(
                f"{where}={first['input']!r}",
                f"a plan has no setting of that name there ({first['loc'][-1]!r})",
                suggest(str(first["loc"][-1]), _keys_beside(first["loc"])),
            ) from error
        raise UserError(
            f"{where}={first['input']!r}",
            first["msg"][0].lower() + first["msg"][1:],
            "docs/plan.md lists what can be set",
        ) from error


def _keys_beside(location: Sequence[int | str]) -> list[str]:
    """Return the keys that exist beside an unknown one."""
    node: Any = Planning()
    for part in location[:-1]:
        # Any label names a tier.
        node = Place() if isinstance(node, dict) else getattr(node, str(part))
    return list(type(node).model_fields) if isinstance(node, BaseModel) else []
