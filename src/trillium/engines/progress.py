"""How far a run is, in the server's log."""

from __future__ import annotations

import logging

from trillium.engines.board import Board
from trillium.federation.side import Metrics
from trillium.report.measure import MAIN

log = logging.getLogger(__name__)


def log_evaluation(board: Board, line: Metrics) -> None:
    """Log an evaluation, and who is missing from its round."""
    quality = [f"{name} {line[name]:.4f}" for name in (*MAIN, "loss", "train_loss") if name in line]
    replied = f"{line['replied']} of {line['asked']} replied" if line["round"] else "start"
    log.info(
        "round %d/%d: %s, %s, %d bytes up, %d bytes down, %.1f s",
        line["round"],
        board.rounds,
        replied,
        ", ".join(quality),
        board.bytes["up"],
        board.bytes["down"],
        line["seconds"],
    )
    for name, reason in sorted(line["missing"].items()):
        log.warning("round %d: %s is missing: %s", line["round"], name, reason)
