"""Checkpoints: what each side holds after a round, one file a side, whole or not there at all."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import torch

from trillium.errors import UserError
from trillium.files import write_atomic

_FILE = re.compile(r"(?P<name>.+)@(?P<number>\d+)\.pt")


class Checkpoints:
    """Files `<name>@<round>.pt` in a folder.

    The clients are kept first and the server last, so that a server's file says that the round is
    complete. The newest file of before stays until then. Contents are tensors and plain values; they
    are read with PyTorch's restricted unpickler, which builds nothing else.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def keep(self, name: str, number: int, content: Any) -> None:
        """Write what a side holds after round `number`, and drop what is not needed any more."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self.folder / f"{name}@{number}.pt", dump(content))
        for old in self.numbers(name, number - 1)[:-1]:
            (self.folder / f"{name}@{old}.pt").unlink(missing_ok=True)

    def numbers(self, name: str, at_most: int | None = None) -> list[int]:
        """Return the rounds that are kept of a side, ascending."""
        found = [_FILE.fullmatch(path.name) for path in self.folder.glob("*.pt")]
        numbers = sorted(int(m["number"]) for m in found if m is not None and m["name"] == name)
        return [number for number in numbers if at_most is None or number <= at_most]

    def newest(self, name: str, at_most: int | None = None) -> tuple[int, Any] | None:
        """Return the newest of a side and its round, or None.

        Raises:
            UserError: the file cannot be read.
        """
        numbers = self.numbers(name, at_most)
        if not numbers:
            return None
        path = self.folder / f"{name}@{numbers[-1]}.pt"
        try:
            return numbers[-1], load(path.read_bytes())
        except Exception as error:  # pickle, zip and torch each raise errors of their own
            raise UserError(
                str(path),
                f"this checkpoint cannot be read ({type(error).__name__}: {error})",
                "Remove the file; the one before it is used then, or the run begins anew",
            ) from error

    def clear(self) -> None:
        """Remove all files; the folder stays if something else lies in it."""
        for path in self.folder.glob("*.pt"):
            path.unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()


def dump(content: Any) -> bytes:
    """Return tensors and plain values as bytes."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def load(data: bytes) -> Any:
    """Return what `dump` was given; builds tensors and plain values, and nothing else."""
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
