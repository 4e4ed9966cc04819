"""What a run is made with: libraries, machine, command, and the commit of the source."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "trillium",
    "torch",
    "transformers",
    "peft",
    "datasets",
    "flwr",
    "flwr-datasets",
    "numpy",
)


def environment(device: str, argv: Sequence[str]) -> dict[str, Any]:
    """Return what a run was made with: versions, machine, command, and the commit if there is one."""
    return {
        "git_sha": _git_sha(),
        "versions": versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "device": device,
        "argv": [Path(argv[0]).name, *argv[1:]] if argv else [],
    }


def versions() -> dict[str, str]:
    """Return the version of each of `PACKAGES` that is installed."""
    found = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _git_sha() -> str | None:
    """Return the commit of the source tree that runs; nothing of the user's own repository."""
    here = Path(__file__).resolve().parent.parent
    if here.parent.name != "src":
        return None
    command = ["git", "-C", str(here), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
