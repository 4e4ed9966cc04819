"""The ledger: what crossed, how big it was, what it cost the client. One line per message."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Literal

from trillium.errors import UserError
from trillium.files import names
from trillium.wire.wire import Direction

Purpose = Literal["train", "once", "evaluate", "generate"]


@dataclass(frozen=True)
class Entry:
    """One message that crossed.

    Attributes:
        round: the turn of the federation; 0 before the first.
        purpose: `train` counts as communication; `once` is reported apart; `evaluate` exists only
            because a simulation can look into its clients, and is never counted; `generate` wrote
            text with a trained model.
        at_seconds: where time is simulated, when it was sent down or had come up, since the begin.
        seconds, flops, peak_bytes: what the client measured while it handled the ask; they stand on
            its reply, and are `None` on the way down.
    """

    round: int
    client: str
    verb: str
    direction: Direction
    purpose: Purpose
    bytes: int
    bytes_raw: int
    kinds: dict[str, int]
    seconds: float | None = None
    flops: float | None = None
    peak_bytes: int | None = None
    at_seconds: float | None = None


class Ledger:
    """Sums up what crossed and, given a path, appends every entry to a JSONL file.

    What the file holds already counts, and is shown to all that `watch`, as every later entry is.

    Attributes:
        entries: all entries where no path was given (tests, notebooks); empty otherwise, because a
            split run writes one for every batch.
    """

    def __init__(
        self, path: Path | None = None, watch: Sequence[Callable[[Entry], None]] = ()
    ) -> None:
        self.entries: list[Entry] = []
        self._bytes: dict[tuple[Direction, Purpose], int] = defaultdict(int)
        self._watch = watch
        if path is not None and path.exists():  # of a run that goes on
            self._read(path)
        self._path = path
        self._file: IO[str] | None = path.open("a", encoding="utf-8") if path else None

    def _read(self, path: Path) -> None:
        num_read = 0
        try:
            with path.open(encoding="utf-8") as lines:
                for line in lines:
                    self._count(Entry(**json.loads(line)))
                    num_read += 1
        except (ValueError, TypeError) as error:
            raise UserError(
                str(path),
                f"the ledger cannot be read behind line {num_read}: sums would be wrong ({error})",
                "Put the file back as it was, or start the run anew",
            ) from error

    def _count(self, entry: Entry) -> None:
        self._bytes[entry.direction, entry.purpose] += entry.bytes
        for watch in self._watch:
            watch(entry)

    def add(self, entry: Entry) -> None:
        """Append one entry."""
        self._count(entry)
        if self._file is None:
            self.entries.append(entry)
            return
        assert self._path is not None
        with names(self._path):
            self._file.write(json.dumps(asdict(entry), separators=(",", ":")) + "\n")

    def bytes_total(self, direction: Direction, purpose: Purpose = "train") -> int:
        """Return the bytes of all messages in one direction, over all clients."""
        return self._bytes[direction, purpose]

    def flush(self) -> None:
        """Write what is buffered, through to the disk; called at the end of each round."""
        if self._file is not None and self._path is not None:
            with names(self._path):
                self._file.flush()
                os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None
