"""`trillium doctor`: what is installed here, and what is missing for what."""

from __future__ import annotations

import json
import platform
import re
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Annotated

import typer

from trillium.extras import APART, EXTRAS, install


def doctor(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON, and nothing else.")
    ] = False,
) -> None:
    """Show what is installed, which devices there are, and what is missing."""
    extras = {extra: _missing(extra) for extra in EXTRAS}
    found = {
        "trillium": version("trillium"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {
            name: _version(name) for name in ("torch", "transformers", "peft", "datasets")
        },
        "devices": _devices(),
        "missing": extras,
    }
    if as_json:
        print(json.dumps(found, indent=1))
        return
    print(f"trillium {found['trillium']}, Python {found['python']}, {found['platform']}")
    for name in ("torch", "transformers", "peft", "datasets"):
        print(f"{name:14} {_version(name) or 'missing'}")
    print(f"{'devices':14} {', '.join(_devices())}")
    for extra, missing in extras.items():
        state = f"missing: {', '.join(missing)}" if missing else "installed"
        print(f"{extra:14} {state} (for {EXTRAS[extra]})")
    if lacking := [extra for extra, missing in extras.items() if missing]:
        print(f"\n{install(','.join(lacking))}")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _missing(extra: str) -> list[str]:
    """Return the packages of an extra that are not installed; its own extras are looked into."""
    apart = APART.get(extra, "").partition("=")[0]
    found = [apart] if apart and _version(apart) is None else []
    for line in requires("trillium") or []:
        needed, _, marker = line.partition(";")
        if not re.search(rf"""extra == ["']{extra}["']""", marker):
            continue
        name = re.split(r"[\[<>=!~ ]", needed.strip())[0]
        if name == "trillium":
            inner = needed.partition("[")[2].partition("]")[0]
            found += [word for one in inner.split(",") for word in _missing(one.strip())]
        elif _version(name) is None:
            found.append(name)
    return list(dict.fromkeys(found))


def _devices() -> list[str]:
    import torch

    names = ["cpu"]
    for number in range(torch.cuda.device_count()):
        names.append(f"cuda:{number} ({torch.cuda.get_device_name(number)})")
    return [*names, *(["mps"] if torch.backends.mps.is_available() else [])]


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command()(doctor)
