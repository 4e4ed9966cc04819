"""How far a run is, told to the operator."""

from __future__ import annotations

import logging

from trillium.federation.side import Metrics
from trillium.wire.ledger import Entry

log = logging.getLogger(__name__)


class Progress:
    """Tells the operator how far the run is, a line an evaluation."""

    def __init__(self, rounds: int) -> None:
        self._rounds = rounds
        self._bytes = {"up": 0, "down": 0}

    def watch(self, entry: Entry) -> None:
        """Take note of a message."""
        if entry.purpose == "train":
            self._bytes[entry.direction] += entry.bytes

    def observe(self, line: Metrics) -> None:
        """Log an evaluation."""
        quality = [
            f"{name} {line[name]:.4f}"
            for name in ("accuracy", "exact_match", "loss", "train_loss")
            if name in line
        ]
        replied = f"{line['replied']} of {line['asked']} replied" if line["round"] else "start"
        log.info(
            "round %d/%d: %s, %s, %d bytes up, %d bytes down, %.1f s",
            line["round"],
            self._rounds,
            replied,
            ", ".join(quality),
            self._bytes["up"],
            self._bytes["down"],
            line["seconds"],
        )
        for name, reason in sorted(line["missing"].items()):
            log.warning("round %d: %s is missing: %s", line["round"], name, reason)
