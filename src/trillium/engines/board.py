"""What the operator sees of a run while it goes on: how far it is, and who of the nodes is there."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from trillium.engines.changes import Change
from trillium.federation.side import Metrics
from trillium.files import NODES, write_atomic
from trillium.wire.ledger import Entry

EVERY_SECONDS: Final = 5.0  # at least between two writes because of what crosses


@dataclass
class Seen:
    """One node, as the server sees it.

    Attributes:
        state: `here`, with a session or an answer since it was last missing; or `away`.
        why: it is away, or was missing when it last was.
        last_seen: when something last came from it, in seconds since 1970.
        round: that its last answer belongs to.
    """

    state: str = "away"
    why: str = ""
    last_seen: float | None = None
    round: int | None = None


class Board:
    """Takes note of a run, from any thread, and writes `nodes.json` into its folder.

    Attributes:
        run: the name of the run.
        round: the last that was evaluated; -1 before.
        nodes: by name.
        bytes: that have crossed in training, by direction.
        missing: in how many evaluated rounds nodes were missing, by name.
        seconds: of the rounds so far.
    """

    def __init__(
        self, folder: Path, rounds: int, failed: Mapping[int, int] = MappingProxyType({})
    ) -> None:
        self._path, self.run, self.rounds, self.round = folder / NODES, folder.name, rounds, -1
        self.nodes: dict[str, Seen] = {}
        self.bytes: Counter[str] = Counter(up=0, down=0)
        self.missing: Counter[str] = Counter()
        self.seconds = 0.0
        self._failed = failed  # how often, by round
        self._lock = threading.RLock()
        self._written = 0.0
        self._write()

    def change(self, name: str, change: Change, reason: str) -> None:
        """Take note that a node came or went; somebody who was not let in is not noted."""
        if change == "refused":
            return
        with self._lock:
            seen = self._of(name)
            seen.state, seen.why = ("here", "") if change == "joined" else ("away", reason)
            seen.last_seen = time.time()
            self._write()

    def watch(self, entry: Entry) -> None:
        """Take note of a message that has crossed."""
        with self._lock:
            if entry.purpose == "train":
                self.bytes[entry.direction] += entry.bytes
            if entry.direction == "up":
                seen = self._of(entry.client)
                seen.state, seen.round, seen.last_seen = "here", entry.round, time.time()
            if time.monotonic() - self._written > EVERY_SECONDS:
                self._write()

    def observe(self, line: Metrics) -> None:
        """Take note of an evaluation."""
        with self._lock:
            self.round, self.seconds = line["round"], line["seconds"]
            self.missing.update(line["missing"].keys())
            for name, reason in line["missing"].items():
                seen = self._of(name)
                seen.state, seen.why = "away", reason
            self._write()

    def _of(self, name: str) -> Seen:
        return self.nodes.setdefault(name, Seen())

    def _write(self) -> None:
        self._written = time.monotonic()
        content = {
            "run": self.run,
            "round": self.round,
            "rounds": self.rounds,
            "bytes": self.bytes,
            "seconds": self.seconds,
            "missing": dict(sorted(self.missing.items())),
            "failed_rounds": sum(self._failed.values()),
            "nodes": {name: asdict(seen) for name, seen in sorted(self.nodes.items())},
        }
        write_atomic(self._path, json.dumps(content, indent=1))
