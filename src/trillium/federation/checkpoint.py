"""Checkpoints: what each side holds after a round, one file a side, whole or not there at all."""

from __future__ import annotations

import hashlib
import io
import re
from pathlib import Path
from typing import Any

import torch

from trillium.errors import UserError
from trillium.files import clear_leftovers, sync, write_atomic

_DIGEST_BYTES = 32
_FILE = re.compile(r"(?P<name>.+)@(?P<number>\d+)\.pt")


class Checkpoints:
    """Files `<name>@<round>.pt` in a folder.

    The clients are kept first and the server last, so that a server's file says that the round is
    complete. The newest file of before stays until then. Contents are tensors and plain values; they
    are read with PyTorch's restricted unpickler, which builds nothing else. A digest stands behind them
    in the file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[str, list[int]] | None = None  # read once: there may be many clients

    def keep(self, name: str, number: int, content: Any) -> None:
        """Write what a side holds after round `number`, and drop what is not needed any more."""
        if not self.folder.is_dir():
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            sync(self.folder.parent)
        data = dump(content)
        write_atomic(self.folder / f"{name}@{number}.pt", data + _digest(data), private=True)
        numbers = self._numbers(name)
        for old in self.numbers(name, number - 1)[:-1]:
            (self.folder / f"{name}@{old}.pt").unlink(missing_ok=True)
            numbers.remove(old)
        numbers[:] = sorted({*numbers, number})

    def numbers(self, name: str, at_most: int | None = None) -> list[int]:
        """Return the rounds that are kept of a side, ascending."""
        return [n for n in self._numbers(name) if at_most is None or n <= at_most]

    def _numbers(self, name: str) -> list[int]:
        if self._known is None:
            self._known = {}
            found = [_FILE.fullmatch(path.name) for path in self.folder.glob("*.pt")]
            for match in filter(None, found):
                self._known.setdefault(match["name"], []).append(int(match["number"]))
            for numbers in self._known.values():
                numbers.sort()
        return self._known.setdefault(name, [])

    def newest(self, name: str, at_most: int | None = None) -> tuple[int, Any] | None:
        """Return the newest of a side that can be read and its round, or None."""
        numbers = self.numbers(name, at_most)
        if not numbers:
            return None
        path = self.folder / f"{name}@{numbers[-1]}.pt"
        try:
            data = path.read_bytes()
            data, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
            if _digest(data) != digest:
                raise ValueError("its digest is another: it was changed, damaged or cut short")
            return numbers[-1], load(data)
        except Exception as error:  # pickle, zip and torch each raise errors of their own
            raise UserError(
                str(path),
                f"this checkpoint cannot be read ({type(error).__name__}: {error})",
                "Remove the file; the one before it is used then, or the run begins anew",
            ) from error

    def back_to(self, name: str, number: int) -> tuple[int, Any] | None:
        """Remove what a side kept of later rounds, which did not count, and return the newest left."""
        numbers = self._numbers(name)
        for late in [n for n in numbers if n > number]:
            (self.folder / f"{name}@{late}.pt").unlink(missing_ok=True)
            numbers.remove(late)
        return self.newest(name)

    def clear_leftovers(self) -> None:
        """Remove what was not written to its end; no process may be keeping anything here."""
        clear_leftovers(self.folder)

    def clear(self) -> None:
        """Remove all files; the folder stays if something else lies in it."""
        self._known = None
        for path in self.folder.glob("*.pt"):
            path.unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES).digest()


def dump(content: Any) -> bytes:
    """Return tensors and plain values as bytes."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def load(data: bytes) -> Any:
    """Return what `dump` was given; builds tensors and plain values, and nothing else."""
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
