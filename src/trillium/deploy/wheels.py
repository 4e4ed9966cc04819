"""Wheels for machines without a network, each held to its hash."""

from __future__ import annotations

import hashlib
from pathlib import Path

from packaging.utils import InvalidWheelFilename, parse_wheel_filename

from trillium.errors import UserError
from trillium.files import write_atomic


def write_requirements(folder: Path) -> Path:
    """Write what pip needs to install exactly the wheels of a folder; return the file.

    Raises:
        UserError: there are none, or two of one package.
    """
    found: dict[str, str] = {}
    for path in sorted(folder.glob("*.whl")):
        try:
            name, version, _, _ = parse_wheel_filename(path.name)
        except InvalidWheelFilename as error:
            raise UserError(str(path), str(error), "Remove it, or name it as pip does") from error
        if name in found:
            raise UserError(str(path), f"there are two wheels of {name}", "Remove one of them")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        found[name] = f"{name}=={version} --hash=sha256:{digest}"
    if "trillium" not in found:
        raise UserError(
            str(folder),
            "there is no wheel of Trillium in it",
            "In a checkout: pip wheel --wheel-dir wheels -c constraints.txt '.[deploy]'",
        )
    target = folder / "requirements.txt"
    write_atomic(target, "".join(f"{line}\n" for line in found.values()))
    return target
