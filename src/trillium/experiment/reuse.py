"""Finished runs that are there already: a comparison takes them instead of making them again."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from trillium.config.experiment import ExperimentConfig, read_yaml
from trillium.config.places import located
from trillium.config.texts import texts_in
from trillium.errors import UserError
from trillium.experiment.arm import Key, place
from trillium.experiment.environment import versions
from trillium.experiment.folder import digest
from trillium.files import write_atomic

REPORT = ("table.csv", "table.md", "report.html", "plots", "run.lock")


def take_finished(
    experiments: Mapping[Key, ExperimentConfig], folder: Path, earlier: Path
) -> dict[Key, Path]:
    """Put finished runs of the same resolved configuration into a comparison; return whose they were.

    A run counts if it has finished, with the same versions of the libraries, and if no file that its
    configuration names was changed since it began. One that was stopped is never taken, and goes on
    nowhere but in its own folder. The files are shared with the earlier run where the system can.

    Args:
        folder: of the comparison, prepared.
        earlier: where to look, at any depth.
    """
    wanted = {digest(located(config).tree()): key for key, config in experiments.items()}
    found: dict[Key, Path] = {}
    for status_file in sorted(earlier.rglob("status.json")):
        path = status_file.parent
        if path.is_relative_to(folder):
            continue
        with suppress(OSError, ValueError, KeyError, UserError):
            status = json.loads(status_file.read_text(encoding="utf-8"))
            simulated = status["state"] == "finished" and not status.get("deployed")
            key = wanted.get(status["config"]) if simulated else None
            if key is not None and key not in found and _is_current(path, status):
                _share(path, place(folder, key), {**status, "arm": key[0], "reused": str(path)})
                found[key] = path
    return found


def _is_current(path: Path, status: Mapping[str, Any]) -> bool:
    """Whether a run would still be made of the same libraries and files."""
    env = json.loads((path / "env.json").read_text(encoding="utf-8"))
    began = datetime.fromisoformat(status["started"]).timestamp()
    names = texts_in(read_yaml(path / "config.yaml"))
    changed = (file.stat().st_mtime for name in names for file in _files(Path(name)))
    return env["versions"] == versions() and max(changed, default=0.0) <= began


def _files(path: Path) -> Iterator[Path]:
    """Yield a file, or those in a folder, if what a text names is one."""
    with suppress(OSError):
        if path.is_file():
            yield path
        elif path.is_dir():
            yield from (file for file in path.rglob("*") if file.is_file())


def _share(source: Path, target: Path, status: Mapping[str, Any]) -> None:
    """Give a run a second place; what is written later, such as a report, is each place's own."""

    def link(one: str, other: str) -> None:
        try:
            os.link(one, other)
        except OSError:  # another disk, or one without links
            shutil.copy2(one, other)

    shutil.copytree(source, target, copy_function=link, ignore=shutil.ignore_patterns(*REPORT))
    write_atomic(target / "status.json", json.dumps(status, indent=1))
