"""Logs of a deployment: what comes from another machine cannot forge a line, or move a cursor."""

from __future__ import annotations

import logging
import sys
from types import TracebackType


class _Clean(logging.Formatter):
    """One printable line for a message, and each line of a traceback set apart."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - as logging calls it
        record.message = _printable(record.message)
        return super().formatMessage(record)

    def formatException(  # noqa: N802
        self,
        ei: tuple[type[BaseException], BaseException, TracebackType | None]
        | tuple[None, None, None],
    ) -> str:
        lines = super().formatException(ei).splitlines()
        return "\n".join("  " + _printable(line) for line in lines)


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text)


def log_to_screen(who: str) -> None:
    """Send Trillium's log to the output of this process, which Flower collects."""
    logger = logging.getLogger("trillium")
    logger.handlers.clear()
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_Clean(f"%(asctime)s %(levelname)s {who}: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
