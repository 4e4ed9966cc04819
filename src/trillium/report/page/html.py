"""Templates, styles and scripts of pages, and which of the scripts a page lets run."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

_HERE = Path(__file__).parent


@cache
def _environment() -> Environment:
    found = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["soft"] = soft
    return found


def soft(text: str) -> Markup:
    """Return a name that may be broken behind its underscores and slashes."""
    return Markup(re.sub("([_/])", r"\1<wbr>", str(escape(text))))


def render(template: str, scripts: Sequence[str], styles: Sequence[str], **values: Any) -> str:
    """Return a page.

    Args:
        template: file below `templates/`.
        scripts, styles: files beside it or below `vendor/`, in their order; all go into the page,
            and no other script may run there.
    """
    texts = [_asset(name) for name in scripts]
    allowed = " ".join(f"'sha256-{_digest(text)}'" for text in texts) or "'none'"
    return (
        _environment()
        .get_template(template)
        .render(
            scripts=[Markup(text) for text in texts],
            styles=Markup("\n".join(_asset(name) for name in styles)),
            policy=Markup(
                "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
                f"script-src {allowed}"
            ),
            **values,
        )
    )


def image(png: bytes) -> str:
    """Return a picture as an address that holds it."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


@cache
def _asset(name: str) -> str:
    text = (_HERE / name).read_text(encoding="utf-8").strip()
    assert "</script" not in text.lower()  # it would end the block that it stands in
    return text


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
