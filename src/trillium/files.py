"""Files that are whole or not there at all."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated


@dataclass(frozen=True)
class MayBePath:
    """Marks a setting that names a file or folder of this machine, if there is one of that name."""


PathOrName = Annotated[str, MayBePath()]


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file so that a crash leaves the old one or the new one, never half of it."""
    data = content.encode() if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
