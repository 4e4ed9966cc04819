"""What a plan is told, checked as the settings of a run are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from trillium.errors import UserError
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
        raise UserError(
            f"{where}={first['input']!r}",
            first["msg"][0].lower() + first["msg"][1:],
            "See docs/plan.md for what a plan is told",
        ) from error
