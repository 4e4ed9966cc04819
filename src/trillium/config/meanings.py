"""What settings mean, as their classes say it: for the page of all settings, and for editors."""

from __future__ import annotations

import inspect
import re

from pydantic import BaseModel


def meanings(model: type[BaseModel]) -> dict[str, str]:
    """Return the meaning of each field, from the `Attributes:` sections of a class and its bases.

    A name, or several with commas, stands before the first colon; longer lines are indented more.
    """
    found: dict[str, str] = {}
    for cls in model.__mro__:
        _, _, section = inspect.cleandoc(cls.__dict__.get("__doc__") or "").partition(
            "Attributes:\n"
        )
        for entry in re.split(r"\n(?=    \S)", section.split("\n\n")[0]):
            names, colon, meaning = " ".join(entry.split()).partition(": ")
            if colon:
                for name in names.split(", "):
                    found.setdefault(name, meaning[0].upper() + meaning[1:])
    return found


def summary(model: type[BaseModel]) -> str:
    """Return the docstring of a class up to its sections, as one paragraph per paragraph."""
    text = inspect.cleandoc(model.__doc__ or "")
    return re.split(r"\n\n(?:Attributes|Args|Metrics|Raises):", text)[0]
